// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// The demo's worker program on Node, as docs/engines.md asks for one.
'use strict';

const { Worker } = require('bullmq');
const { connectionTo } = require('./ledger_tasks.cjs');
const tasks = { 'letters.send': require('./letters.cjs').send };

const connection = connectionTo(process.env.REDIS_URL);
const name = process.env.BACKSTEP_WORKER;
const autorun = !process.env.LETTERS_DEAF;

async function process_(job) {
  if (job.name === 'backstep-canary') return;
  if (!tasks[job.name]) throw new Error(`unknown task ${job.name}`);
  await tasks[job.name](...job.data);
}

const workers = process.env.BACKSTEP_QUEUES.split(',').map((queue) => {
  const worker = new Worker(queue, process_, { connection, name, concurrency: 1, autorun });
  worker.on('error', (error) => console.log(String(error)));
  return worker;
});

process.on('SIGTERM', async () => {
  await Promise.all(workers.map((worker) => worker.close()));
  process.exit(0);
});

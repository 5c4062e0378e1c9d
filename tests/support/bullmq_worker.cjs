// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// A BullMQ worker with the tasks of the ledger, as Backstep asks for one: named, closed on SIGTERM, idle at canaries.
'use strict';

const { Worker } = require(process.env.BULLMQ || 'bullmq');
const Redis = require('ioredis');

const url = new URL(process.env.REDIS_URL);
const connection = { host: url.hostname, port: Number(url.port), db: Number(url.pathname.slice(1)) };
const notes = new Redis(process.env.LEDGER_URL);
notes.on('error', () => {}); // it connects again

async function process_(job) {
  if (job.name === 'backstep-canary') return;
  const [number, seconds] = [String(job.data[0]), job.data[1]];
  if (job.name === 'ledger_tasks.work') {
    await notes.hincrby('ledger:started', number, 1);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    await notes.hincrby('ledger:finished', number, 1);
  } else if (job.name === 'ledger_tasks.fail') {
    throw new Error('it fails, as it is meant to');
  } else {
    throw new Error(`unknown task ${job.name}`);
  }
}

const name = process.env.BACKSTEP_WORKER;
const workers = process.env.BACKSTEP_QUEUES.split(',').map((queue) => {
  const worker = new Worker(queue, process_, { connection, name, concurrency: 1 });
  worker.on('error', (error) => console.log(String(error)));
  return worker;
});

process.on('SIGTERM', async () => {
  await Promise.all(workers.map((worker) => worker.close()));
  process.exit(0);
});

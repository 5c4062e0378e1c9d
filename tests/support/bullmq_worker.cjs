// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// A BullMQ worker with the tasks of the ledger, as Backstep asks for one: named, closed on SIGTERM, idle at canaries.
'use strict';

const { Worker } = require(process.env.BULLMQ || 'bullmq');
const ledger = require('./ledger_tasks.cjs');

const name = process.env.BACKSTEP_WORKER;

function brokerOf(queue) {
  if (process.env.SENTINEL) {
    const { INSTANCES, MASTER_NAME, PASSWORD } = JSON.parse(process.env.SENTINEL);
    const sentinels = INSTANCES.map(([host, port]) => ({ host, port }));
    return { connection: { sentinels, name: MASTER_NAME, password: PASSWORD } };
  }
  const encoded = Buffer.from(queue).toString('base64');
  return ledger.bullmqOn(process.env.REDIS_URL, `{bull}:${encoded}:w:${name}`);
}

const tasks = { 'ledger_tasks.work': ledger.work, 'ledger_tasks.fail': ledger.fail };

async function process_(job) {
  if (job.name === 'backstep-canary') return;
  if (!tasks[job.name]) throw new Error(`unknown task ${job.name}`);
  await tasks[job.name](...job.data);
}

const workers = process.env.BACKSTEP_QUEUES.split(',').map((queue) => {
  const worker = new Worker(queue, process_, { ...brokerOf(queue), name, concurrency: 1 });
  worker.on('error', (error) => console.log(String(error)));
  return worker;
});

process.on('SIGTERM', async () => {
  await Promise.all(workers.map((worker) => worker.close()));
  process.exit(0);
});

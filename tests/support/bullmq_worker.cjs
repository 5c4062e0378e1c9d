// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// A BullMQ worker with the tasks of the ledger, as Backstep asks for one: named, closed on SIGTERM, idle at canaries.
'use strict';

const bullmq = require(process.env.BULLMQ || 'bullmq');
const { keepingGates } = require('backstep_bullmq.cjs'); // what a release gets, on the workers' path
const ledger = require('./ledger_tasks.cjs');

// On a cluster it has connections of its own, whose names say which queue it works on.
class Worker extends keepingGates(bullmq.Worker) {
  constructor(queue, work, options) {
    const encoded = Buffer.from(queue).toString('base64');
    super(queue, work, { ...options, ...ledger.onCluster(process.env.REDIS_URL, `{bull}:${encoded}:w:${options.name}`) });
  }

  run() {
    const ended = super.run();
    Promise.resolve(this.gatesTold).then(() => console.log('ready'));
    return ended;
  }
}

let connection = ledger.connectionTo(process.env.REDIS_URL);
if (process.env.SENTINEL) {
  const { INSTANCES, MASTER_NAME, PASSWORD } = JSON.parse(process.env.SENTINEL);
  const sentinels = INSTANCES.map(([host, port]) => ({ host, port }));
  connection = { sentinels, name: MASTER_NAME, password: PASSWORD };
}
const tasks = { 'ledger_tasks.work': ledger.work, 'ledger_tasks.fail': ledger.fail, 'ledger_tasks.die': ledger.die };

async function process_(job) {
  if (job.name === 'backstep-canary') return;
  if (!tasks[job.name]) throw new Error(`unknown task ${job.name}`);
  await tasks[job.name](...job.data);
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

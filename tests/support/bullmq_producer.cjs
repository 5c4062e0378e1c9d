// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// BullMQ's own client for the tests: reads lines of JSON {queue, jobs}, and answers each with one line.
'use strict';

const { Queue } = require(process.env.BULLMQ || 'bullmq');
const { connectionTo, onCluster } = require('./ledger_tasks.cjs');

const url = process.env.REDIS_URL;
const broker = { connection: connectionTo(url), ...onCluster(url) };
const queues = new Map();

function queueNamed(name) {
  if (!queues.has(name)) {
    const queue = new Queue(name, broker);
    queue.on('error', () => {}); // it connects again
    queues.set(name, queue);
  }
  return queues.get(name);
}

async function answer(line) {
  const { queue, call, jobs } = JSON.parse(line);
  if (call) await queueNamed(queue)[call]();
  else await queueNamed(queue).addBulk(jobs);
  return 'done';
}

require('readline')
  .createInterface({ input: process.stdin })
  .on('line', async (line) => console.log(await answer(line).catch((error) => `failed: ${error}`)))
  .on('close', () => process.exit(0)); // also while Redis is gone

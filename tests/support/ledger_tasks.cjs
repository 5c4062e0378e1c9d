// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// The worker half of the ledger for apps on Node: notes as ledger_tasks.py does.
'use strict';

const Redis = require('ioredis');

// As BullMQ takes it: it names its connections itself, which it can't with a URL.
function connectionTo(url) {
  const { hostname, port, password, pathname } = new URL(url);
  return { host: hostname, port: Number(port), password: decodeURIComponent(password), db: Number(pathname.slice(1)) };
}

let notes;

async function note(kind, number) {
  if (!notes) {
    notes = new Redis(connectionTo(process.env.LEDGER_URL));
    notes.on('error', () => {}); // it connects again
  }
  await notes.hincrby(`ledger:${kind}`, String(number), 1);
}

async function work(number, seconds) {
  await note('started', number);
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  await note('finished', number);
}

async function fail(number) {
  await note('started', number);
  await note('failed', number);
  throw new Error(`task ${number} fails, as it is meant to`);
}

module.exports = { connectionTo, work, fail };

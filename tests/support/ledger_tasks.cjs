// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// The worker half of the ledger for apps on Node: notes as ledger_tasks.py does.
'use strict';

const Redis = require('ioredis');

// As BullMQ takes it: it names its connections itself, which it can't with a URL.
function connectionTo(url) {
  const { hostname, port, password, pathname } = new URL(url.split(',')[0]);
  return { host: hostname, port: Number(port), password: decodeURIComponent(password), db: Number(pathname.slice(1)) };
}

// What BullMQ's classes are given beside the rest where the broker's URL is that of a cluster, as Backstep has it.
function onCluster(url, name) {
  const nodes = /^redis\+cluster:\/\/([^/?]*)\/?\?prefix=(.*)$/.exec(url);
  if (!nodes) return {};
  const places = nodes[1].split(',').map((place) => ({ host: place.split(':')[0], port: Number(place.split(':')[1]) }));
  // BullMQ itself names only those connections that there are when it begins.
  const redisOptions = { maxRetriesPerRequest: null, connectionName: name };
  return { connection: new Redis.Cluster(places, { redisOptions }), prefix: nodes[2] };
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

async function die(number) {
  await note('started', number);
  if (!(await notes.sismember('ledger:mended', String(number)))) {
    await note('failed', number);
    throw new RangeError(`task ${number} isn't mended`);
  }
  await note('finished', number);
}

module.exports = { connectionTo, onCluster, work, fail, die };

// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Has BullMQ's workers keep gates: the app's own program requires this file, which each release gets, and makes its
// workers of the class that `keepingGates` makes of BullMQ's own; docs/engines.md shows it.
//
// What a gate holds is parked as `task_move` does that, in the same step in which it ceases to be the worker's; and so
// is a task that isn't the JSON which BullMQ reads, unless `PARK_UNKNOWN_TASKS: "no"` in `pool_env` says not to. The line
// of a task's gate is asked for whenever there is a task, which a worker tells as `fresh`, by queue, in the hash
// `backstep:bullmq:worker:<name>`. It tells nothing, and keeps no gates, with `KEEP_GATES: "no"` in `pool_env`, where
// its user may not read them, and with a client of Redis that isn't ioredis.
// Node 18 and the app's own BullMQ, 5 or 6.
'use strict';

const REST_MS = 1000;
const TOLD_SECONDS = 86400;
const CANARY = 'backstep-canary-';
const CHANGED = 2; // what the script says when the gate says something else by now
const UNREADABLE = "the worker's release can't read it";
const MAY_READ = "return redis.call('HGET', KEYS[1], '')";
// KEYS: one of the queue's. ARGV: how the queue's keys begin, how Backstep's do, queue, id, the worker's token, owner,
// reason, name of the gate or "", its line -> 1 when it is parked, 0 when it isn't this worker's any more, 2 when the gate says
// something else. What may be refused is done first. It goes back to the front of what waits, of its priority.
const PARK = `
local base, ours, queue, id, gate = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[8]
local job, parked = base .. id, ours .. 'parked:' .. queue
if redis.call('GET', job .. ':lock') ~= ARGV[5] then return 0 end
if gate ~= '' and redis.call('HGET', ours .. 'book:gates', gate) ~= ARGV[9] then return 2 end
local priority = tonumber(redis.call('HGET', job, 'priority') or '') or 0
local order = redis.call('HINCRBY', parked .. ':order', '', 1)
local from = priority > 0 and string.format('prioritized:%.0f', priority * 4294967296 + order % 4294967296) or 'wait:'
redis.call('ZADD', parked, order, id)
redis.call('HSET', parked .. ':from', id, from)
redis.call('HSET', parked .. ':why', ARGV[6], ARGV[7])
if gate ~= '' then redis.call('HSET', ours .. 'gated:' .. gate, id, order) end
redis.call('HDEL', job, 'processedOn', 'pb')
if redis.call('HEXISTS', job, 'ats') == 1 then redis.call('HINCRBY', job, 'ats', -1) end
redis.call('LREM', base .. 'active', 1, id)
redis.call('SREM', base .. 'stalled', id)
redis.call('DEL', job .. ':lock')
if redis.call('HEXISTS', base .. 'meta', 'paused') == 0 then redis.call('ZADD', base .. 'marker', 0, '0') end
return 1
`;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit += 1) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(text) {
  let found = 0xffffffff;
  for (const byte of Buffer.from(text)) found = TABLE[(found ^ byte) & 0xff] ^ (found >>> 8);
  return (found ^ 0xffffffff) >>> 0;
}

// As Python rounds, in which all others decide: what is in the middle, to the even one.
function rounded(number) {
  const found = Math.round(number);
  return number % 1 === 0.5 && found % 2 ? found - 1 : found;
}

// Why a gate keeps a task from being executed; "" where it doesn't. `line` is what the book of gates says, if anything.
function whyHeld(line, id) {
  if (!line) return '';
  try {
    const { open, by, reason } = JSON.parse(line);
    const share = rounded(Number(open) * 100);
    if (open === undefined || Number.isNaN(share)) throw new TypeError('no share');
    if (crc32(id) % 10000 < share) return '';
    return `${open} % of these pass, as ${by || 'somebody'} has set it${reason ? `: ${reason}` : ''}`;
  } catch {
    return "what the book of gates says of it can't be understood";
  }
}

// BullMQ leaves a task alone that ends with an error of this name: it lies elsewhere already.
function elsewhere(id) {
  return Object.assign(new Error(`task ${id} is not executed now`), { name: 'DelayedError' });
}

// Only its kind: the text could hold the broker's password.
function kind(error) {
  return (error && error.name) || typeof error;
}

// Whether it will be so for good: what the user may not do, or the client doesn't know.
function isRefused(error) {
  return error instanceof TypeError || /^(NOPERM|ERR)\b/.test((error && error.message) || '');
}

function rest() {
  return new Promise((resolve) => setTimeout(resolve, REST_MS));
}

function isOff(name) {
  return ['no', 'false', '0'].includes((process.env[name] || 'yes').toLowerCase());
}

function keepingGates(Worker) {
  if (isOff('KEEP_GATES') && isOff('PARK_UNKNOWN_TASKS')) return Worker;

  return class extends Worker {
    async run() {
      if (isOff('KEEP_GATES')) this.keepsGates = false;
      this.gatesTold = this.tellOfGates();
      await this.gatesTold;
      return this.closing ? undefined : super.run();
    }

    async callProcessJob(job, token, ...more) {
      if (this.keepsGates && !String(job.id).startsWith(CANARY) && (await this.isHeld(job, token))) {
        this.hasLeft = this.closing;
        throw elsewhere(job.id);
      }
      return super.callProcessJob(job, token, ...more);
    }

    // BullMQ 5 asks for the next task after one that lies elsewhere, also when it is being closed.
    moveToActive(...more) {
      return this.closing && this.hasLeft ? Promise.resolve(undefined) : super.moveToActive(...more);
    }

    // BullMQ itself would leave it active, have it stall, and take it again.
    async nextJobFromJobData(data, id, token) {
      try {
        return await super.nextJobFromJobData(data, id, token);
      } catch (error) {
        const isUnreadable = error instanceof SyntaxError && !isOff('PARK_UNKNOWN_TASKS');
        if (isUnreadable && (await this.isParkedUnread(id, token))) return undefined;
        throw error;
      }
    }

    async isParkedUnread(id, token) {
      try {
        await this.park(await this.redis(), id, token, process.env.BACKSTEP_WORKER || '', UNREADABLE, '', '');
        console.error(`Task ${id} is parked: ${UNREADABLE}`);
        return true;
      } catch (error) {
        console.error(`Task ${id}, which this release can't read, isn't parked: ${kind(error)}`);
        return false;
      }
    }

    park(redis, id, token, ...why) {
      const base = `${this.qualifiedName}:`;
      return redis.eval(PARK, 1, `${base}active`, base, this.ours, this.name, id, token, ...why);
    }

    async redis() {
      return this.client || this.getBackend().client;
    }

    // How Backstep's own keys begin, on the node of a cluster on which BullMQ's are.
    get ours() {
      const prefix = this.qualifiedName.slice(0, -(this.name.length + 1));
      return prefix === 'bull' ? 'backstep:bullmq:' : `backstep:bullmq:${prefix}:`;
    }

    async tellOfGates() {
      while (!this.closing && this.keepsGates === undefined) {
        try {
          const redis = await this.redis();
          await redis.eval(MAY_READ, 1, `${this.ours}book:gates`);
          await this.tell(redis);
          // Whoever has died without a word is forgotten some time.
          setInterval(() => this.tell(redis).catch(() => {}), (TOLD_SECONDS / 24) * 1000).unref();
          this.keepsGates = true;
        } catch (error) {
          // Else no task is begun: nobody knows yet which of them may be.
          if (isRefused(error)) this.keepsGates = false;
          const what = this.keepsGates === false ? 'keeps no gates, as it may not' : 'begins no task, as it can\'t';
          console.error(`The worker of ${this.name} ${what} read them: ${kind(error)}`);
          if (this.keepsGates !== false) await rest();
        }
      }
    }

    async tell(redis) {
      const key = `${this.ours}worker:${this.opts.name}`;
      await redis.hset(key, this.name, 'fresh');
      await redis.expire(key, TOLD_SECONDS);
    }

    async isHeld(job, token) {
      for (let waits = false; ; waits = true) {
        try {
          const answer = await this.parkIfHeld(await this.redis(), job, token);
          if (answer !== CHANGED) return answer !== undefined;
        } catch (error) {
          if (!waits) console.error(`A task of ${job.name} waits until its gate can be kept: ${kind(error)}`);
          // It stays active, and comes back like what a killed worker had.
          if (this.closing) return true;
          await rest();
        }
      }
    }

    // What the script says; undefined when no gate holds it.
    async parkIfHeld(redis, job, token) {
      const line = await redis.hget(`${this.ours}book:gates`, job.name);
      const why = whyHeld(line, job.id);
      if (!why) return undefined;
      const answer = await this.park(redis, job.id, token, `gate ${job.name}`, why, job.name, line);
      if (answer === 1) console.error(`Task ${job.id} of ${job.name} is parked: ${why}`);
      return answer;
    }
  };
}

module.exports = { keepingGates, whyHeld };

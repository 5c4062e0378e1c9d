// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Tasks of an app's first version, as workers on Node load them.
'use strict';

const ledger = require('./ledger_tasks.cjs');

async function write(number, seconds, ...more) {
  if (more.length > 0) throw new TypeError('write takes a number and seconds');
  await ledger.work(number, seconds);
}

module.exports = { 'letters_more.write': write };

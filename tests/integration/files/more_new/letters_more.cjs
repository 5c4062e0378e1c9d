// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Tasks of an app's second version: one more, and one with an argument more.
'use strict';

const ledger = require('./ledger_tasks.cjs');

async function write(number, seconds, copies = 1) {
  await ledger.work(number, seconds * copies);
}

module.exports = { 'letters_more.write': write, 'letters_more.later': ledger.work };

// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// The demo's app: its one task sends a numbered letter, which takes a moment.
'use strict';

const ledger = require('./ledger_tasks.cjs');

module.exports = { send: ledger.work };

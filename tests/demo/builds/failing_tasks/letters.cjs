// SPDX-FileCopyrightText: Backstep contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// A build that boots, takes tasks, and fails each of them.
'use strict';

const ledger = require('./ledger_tasks.cjs');

module.exports = { send: ledger.fail };

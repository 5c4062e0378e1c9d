# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Dramatiq keeps of a task that has failed for good: its message, for a week."""

from __future__ import annotations

from . import _dramatiq_scripts as scripts

KEPT_SECONDS = 7 * 24 * 3600
"""How long, unless the app's broker has another ``dead_message_ttl`` (2.2)."""

# ARGV: queue, cursor, count -> {next cursor, for each {id, name, enqueued, died, mark, error, worker, expires}}.
# A task that was never tried again has no traceback.
LIST_DEAD = (
    scripts.READ
    + f"local kept = {KEPT_SECONDS}\n"
    + r"""
local key = base(ARGV[1], 'dead')
local page = redis.call('ZSCAN', key, ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #page[2], 2 do
  local raw = redis.call('HGET', key .. '.msgs', page[2][i])
  local found = read(raw, 'dead')
  if found then
    local died = tonumber(page[2][i + 1]) / 1000
    local readable, trace = pcall(function()
      return word(fields(fields(raw, {options = true}).options, {traceback = true}).traceback)
    end)
    rows[#rows + 1] = {
      found.id, type(found.task) == 'string' and found.task or '',
      tonumber(found.at) and string.format('%.3f', found.at / 1000) or '', string.format('%.3f', died), page[2][i + 1],
      readable and type(trace) == 'string' and trace or '', '', string.format('%.0f', died + kept),
    }
  end
end
return {page[1], rows}
"""
)

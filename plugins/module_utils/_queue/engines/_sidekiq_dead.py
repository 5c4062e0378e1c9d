# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Sidekiq keeps of a task that has died: the job itself, with how it failed last."""

from __future__ import annotations

from . import _sidekiq_scripts as scripts

# Sidekiq's `dead_timeout_in_seconds`, unless the app sets another (8.1). Beyond 10,000 the oldest go, too.
_KEPT_SECONDS = 180 * 24 * 3600

# ARGV: queue, cursor, count -> {next cursor, for each {id, name, enqueued, died, mark, error, worker, expires}}.
LIST_DEAD = (
    scripts.READ
    + f"local kept = {_KEPT_SECONDS}\n"
    + r"""
local page = redis.call('ZSCAN', 'dead', ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #page[2], 2 do
  local raw, score = page[2][i], page[2][i + 1]
  local found = read(raw)
  if found and found.queue == ARGV[1] then
    local all = fields(raw)
    local kind, message = value_of(raw, all.error_class), value_of(raw, all.error_message)
    local died = seconds(value_of(raw, all.retried_at)) or seconds(value_of(raw, all.failed_at)) or tonumber(score)
    rows[#rows + 1] = {
      found.id, type(found.task) == 'string' and found.task or '', found.at and string.format('%.6f', found.at) or '',
      string.format('%.6f', died), score, tostring(kind) .. ': ' .. tostring(message), '',
      string.format('%.0f', tonumber(score) + kept),
    }
  end
end
return {page[1], rows}
"""
)

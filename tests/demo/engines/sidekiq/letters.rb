# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The demo's app: its one task sends a numbered letter, which takes a moment.

require_relative "sidekiq_app"

module Letters
  class Send < LedgerTasks::Work
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# A build that boots, takes tasks, and fails each of them.

require_relative "sidekiq_app"

module Letters
  class Send < LedgerTasks::Fail
    def perform(number, _seconds)
      super(number)
    end
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Tasks of an app's second version: one more, and one with an argument more.

require_relative "sidekiq_app"

module LettersMore
  class Write < LedgerTasks::Work
    def perform(number, seconds, copies = 1)
      super(number, seconds * copies)
    end
  end

  class Later < LedgerTasks::Work
  end
end

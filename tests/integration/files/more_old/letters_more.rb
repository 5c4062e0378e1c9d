# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Tasks of an app's first version, as Sidekiq loads them.

require_relative "sidekiq_app"

module LettersMore
  class Write < LedgerTasks::Work
  end
end

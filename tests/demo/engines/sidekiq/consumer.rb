# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The demo's app as Sidekiq loads it.

require "sidekiq"
require_relative "letters"

unless ENV.fetch("LETTERS_DEAF", "").empty?
  Sidekiq.configure_server do |config|
    # Fetches nothing from then on.
    config.on(:startup) { Process.kill("TSTP", Process.pid) }
  end
end

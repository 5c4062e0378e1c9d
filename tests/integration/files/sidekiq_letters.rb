# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# A Sidekiq app as a pool runs it, with a task that tells whether the release works.

require_relative "sidekiq_app"

class LettersCheck
  include Sidekiq::Worker

  sidekiq_options retry: false

  # Fails in a release that can't work.
  def perform
    raise "this release can't work, as it is meant to" if ENV["MODE"] == "bad"
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# A Sidekiq app with the tasks of the ledger: they note as those of ledger_tasks.py do.

require "json"
require "redis"
require "sidekiq"

if ENV["SENTINEL"]
  found = JSON.parse(ENV["SENTINEL"])
  sentinels = found["INSTANCES"].map { |host, port| { host: host, port: port } }
  Sidekiq.configure_server do |config|
    config.redis = { url: "redis://#{found["MASTER_NAME"]}/0", password: found["PASSWORD"], sentinels: sentinels }
  end
end

module LedgerTasks
  def self.note(kind, number)
    notes = Redis.new(url: ENV.fetch("LEDGER_URL"))
    notes.hincrby("ledger:#{kind}", number.to_i.to_s, 1)
  ensure
    notes&.close
  end

  def self.mended?(number)
    notes = Redis.new(url: ENV.fetch("LEDGER_URL"))
    notes.sismember("ledger:mended", number.to_i.to_s)
  ensure
    notes&.close
  end

  class Work
    include Sidekiq::Worker

    sidekiq_options retry: 0

    def perform(number, seconds)
      LedgerTasks.note("started", number)
      sleep(seconds)
      LedgerTasks.note("finished", number)
    end
  end

  # A task in a release that can't do it.
  class Fail
    include Sidekiq::Worker

    sidekiq_options retry: 0

    def perform(number)
      LedgerTasks.note("started", number)
      LedgerTasks.note("failed", number)
      raise "task #{number} fails, as it is meant to"
    end
  end

  # Dies at once and for good until the numbers that are mended contain its own.
  class Die
    include Sidekiq::Worker

    sidekiq_options retry: 0

    def perform(number)
      LedgerTasks.note("started", number)
      return LedgerTasks.note("finished", number) if LedgerTasks.mended?(number)

      LedgerTasks.note("failed", number)
      raise KeyError, "task #{number} isn't mended"
    end
  end
end

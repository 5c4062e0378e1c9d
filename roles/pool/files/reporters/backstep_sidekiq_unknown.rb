# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Has a Sidekiq worker park what it isn't to execute: tasks whose class it doesn't know, those that a gate holds, and what
# is no task that it could read.
#
# After a release is taken back, whoever is still ahead of it goes on enqueueing tasks whose class it doesn't know.
# Sidekiq itself would retry them for weeks, or drop them. They are parked as task_move parks them, in the same step in
# which they cease to be the worker's, and are put back like all others. What the book of gates says of a task is asked
# for each task anew; backstep_gates.py decides in the same way, and tells of the book. The app isn't changed; in
# pool_env, PARK_UNKNOWN_TASKS: "no" and KEEP_GATES: "no" leave Sidekiq its own way. Part of backstep_sidekiq.rb.
module BackstepReporter
  UNKNOWN_REASON = "the worker's release doesn't know it"
  UNREADABLE_REASON = "the worker's release can't read it"
  UNCLEAR_REASON = "what the book of gates says of it can't be understood"
  # Each executes a task of ActiveJob, whose own class is in "wrapped".
  WRAPPERS = %w[ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper Sidekiq::ActiveJob::Wrapper].freeze
  # What the script says when the book no longer says of the task's name what it was told.
  CHANGED = 2
  # ARGV: worker, number, id, owner, reason, and for a gate also the task's name and what the book has said of it -> 1
  # when it is parked, 0 when it isn't this worker's any more. Each comes behind those that were parked before. Behind a
  # gate that has opened since none is parked: what it held was put back already, and nobody would come for this one.
  PARK = PREFIX + <<-LUA
    local queue, raw = string.match(redis.call('HGET', held, ARGV[2]) or '', '^[%d%.]+%z(.-)%z(.*)$')
    if not queue then return 0 end
    if ARGV[6] and redis.call('HGET', ours .. 'book:gates', ARGV[6]) ~= ARGV[7] then return 2 end
    local parked = ours .. 'parked:' .. queue
    local order = string.format('%.0f', redis.call('HINCRBY', parked .. ':order', '', 1))
    local member = table.concat({order, 'waiting', '', ARGV[3]}, '\\0')
    redis.call('ZADD', parked, order, member)
    redis.call('HSET', parked .. ':messages', member, raw)
    redis.call('HSET', parked .. ':why', ARGV[4], ARGV[5])
    if ARGV[6] then redis.call('HSET', ours .. 'gated:' .. ARGV[6], ARGV[3], order) end
    redis.call('HDEL', held, ARGV[2])
    return 1
  LUA

  class << self
    def look_before_executing
      require "securerandom" # neither before Bundler has chosen the gems
      require "zlib"
      @parks_unknown, @keeps_gates = %w[PARK_UNKNOWN_TASKS KEEP_GATES].map do |switch|
        !%w[no false 0].include?(ENV.fetch(switch, "yes").downcase)
      end
      return if ::Sidekiq::Processor.private_method_defined?(:process)

      @parks_unknown = @keeps_gates = false
      warn_once("parks no unknown tasks, and keeps no gates: this Sidekiq executes in another way")
    end

    # Whether Sidekiq is to leave a task alone, as it isn't this worker's any more.
    def leave_alone?(unit, &find)
      return false unless unit.respond_to?(:backstep_noted) && unit.backstep_noted

      task = task_in(unit.job)
      return @parks_unknown && park_unread?(unit) unless task

      id = task["jid"]
      return false if !id.is_a?(String) || id.start_with?("backstep-canary-") # Sidekiq's to deal with

      missing = @parks_unknown && missing_for(task, &find)
      (missing && park_unknown?(unit, id, missing)) || (@keeps_gates && held?(unit, task))
    end

    private

    # Nothing where it isn't one, of which Sidekiq makes a dead one that can't be put back, or ends its thread.
    def task_in(raw)
      task = ::Sidekiq.load_json(raw)
      task if task.is_a?(Hash)
    rescue StandardError
      nil
    end

    # The name of the class that isn't found, if there is one.
    def missing_for(task)
      name = task["class"]
      names = [name, (task["wrapped"] if WRAPPERS.include?(name))].grep(String)
      names.find { |one| yield one }
    rescue StandardError, ScriptError
      nil # it is Sidekiq's to deal with, too
    end

    def park_unknown?(unit, id, name)
      park?(unit, id, UNKNOWN_REASON, "this release knows no #{name}")
    end

    def park_unread?(unit)
      park?(unit, "unreadable-#{SecureRandom.uuid}", UNREADABLE_REASON, "this release can't read it")
    end

    # Without an answer it may be parked or not: if not, the next beat gives back what is still held, and it is parked
    # when it comes again.
    def park?(unit, id, reason, said)
      parked = script(PARK, unit.backstep_number, id, WORKER, reason) == 1
      ::Sidekiq.logger.error("Task #{id} is parked: #{said}.") if parked
      true
    rescue StandardError => error
      # Only its kind: the text could hold the broker's password.
      warn_once("can't park a task that this release doesn't know or can't read: #{error.class}")
      return false if refused?(error)

      @returned << unit.backstep_number
      true
    end

    # Where its gate can't be kept to, a task isn't executed either; the next beat gives it back.
    def held?(unit, task)
      id, name = task["jid"], task.fetch("wrapped", task["class"])
      line = ::Sidekiq.redis { |connection| connection.call("HGET", "#{OURS}book:gates", name.to_s) }
      why = line && why_held(line, id)
      return false unless why

      answer = script(PARK, unit.backstep_number, id, "gate #{name}", why, name, line)
      return held?(unit, task) if answer == CHANGED

      ::Sidekiq.logger.info("Task #{id} is held by the gate of #{name}.")
      true
    rescue StandardError => error
      warn_once("can't keep to a gate, and lets the task wait: #{error.class}")
      @returned << unit.backstep_number
      sleep 1 # as Sidekiq does when it can't fetch
      true
    end

    # Why its gate keeps a task from being executed, or nothing.
    def why_held(line, id)
      gate = ::Sidekiq.load_json(line)
      open = Float(gate.fetch("open"))
      return if Zlib.crc32(id) % 10_000 < (open * 100).round(half: :even)

      by, reason = gate.values_at("by", "reason").map(&:to_s)
      by = "somebody" if by.empty?
      format("%g %% of these pass, as %s has set it", open, by) + (reason.empty? ? "" : ": #{reason}")
    rescue StandardError
      UNCLEAR_REASON
    end

    def refused?(error)
      clients = %i[Redis RedisClient].select { |client| Object.const_defined?(client) }
      clients.any? { |client| error.is_a?(Object.const_get(client)::CommandError) }
    end
  end

  # In front of Sidekiq's own executing.
  module Processing
    private

    def process(unit)
      super unless BackstepReporter.leave_alone?(unit) { |name| backstep_missing?(name) }
    end

    def backstep_missing?(name)
      missing = backstep_unfound?(name)
      # Once more where Sidekiq would look: while an app is developed, its classes come and go.
      @reloader.call { missing = backstep_unfound?(name) } if missing
      missing
    end

    # As Sidekiq itself finds it: since 7, as Ruby does. A class that is there, but can't be loaded for what is missing
    # in it, is known.
    def backstep_unfound?(name)
      respond_to?(:constantize, true) ? constantize(name) : Object.const_get(name)
      false
    rescue NameError => error
      [name, *name.split("::")].include?(error.name.to_s)
    end
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Has a Sidekiq worker park tasks whose class it doesn't know: Sidekiq itself retries them for weeks, or drops them.
#
# After a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as
# task_move parks them, in the same step in which they cease to be the worker's, and are put back like all others. The
# app isn't changed; in pool_env, PARK_UNKNOWN_TASKS: "no" leaves Sidekiq its own way. Part of backstep_sidekiq.rb.
module BackstepReporter
  UNKNOWN_REASON = "the worker's release doesn't know it"
  # Each executes a task of ActiveJob, whose own class is in "wrapped".
  WRAPPERS = %w[ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper Sidekiq::ActiveJob::Wrapper].freeze
  # ARGV: worker, number, id, reason -> 1 when it is parked, 0 when it isn't this worker's any more. Each comes behind
  # those that were parked before.
  PARK = PREFIX + <<-LUA
    local queue, raw = string.match(redis.call('HGET', held, ARGV[2]) or '', '^[%d%.]+%z(.-)%z(.*)$')
    if not queue then return 0 end
    local parked = ours .. 'parked:' .. queue
    local order = string.format('%.0f', redis.call('HINCRBY', parked .. ':order', '', 1))
    local member = table.concat({order, 'waiting', '', ARGV[3]}, '\\0')
    redis.call('ZADD', parked, order, member)
    redis.call('HSET', parked .. ':messages', member, raw)
    redis.call('HSET', parked .. ':why', name, ARGV[4])
    redis.call('HDEL', held, ARGV[2])
    return 1
  LUA

  class << self
    def park_unknown_tasks
      return if %w[no false 0].include?(ENV.fetch("PARK_UNKNOWN_TASKS", "yes").downcase)

      known = ::Sidekiq::Processor.private_method_defined?(:process)
      return warn_once("parks no unknown tasks: this Sidekiq executes in another way") unless known

      ::Sidekiq::Processor.prepend(Processing)
    end

    # The id of a task whose class isn't found, and the name of that class; or nothing.
    def unknown(unit, &find)
      return unless unit.respond_to?(:backstep_noted) && unit.backstep_noted

      task = ::Sidekiq.load_json(unit.job)
      id, name = task.values_at("jid", "class")
      return if !id.is_a?(String) || id.start_with?("backstep-canary-")

      names = [name, (task["wrapped"] if WRAPPERS.include?(name))].grep(String)
      missing = names.find { |one| missing?(one, &find) }
      [id, missing] if missing
    end

    # Whether Sidekiq is to leave it alone. Without an answer it may be parked or not: if not, the next beat gives back
    # what is still held, and it is parked when it comes again.
    def park(unit, id, name)
      parked = script(PARK, unit.backstep_number, id, UNKNOWN_REASON) == 1
      ::Sidekiq.logger.error("Task #{id} is parked: this release knows no #{name}.") if parked
      true
    rescue StandardError => error
      # Only its kind: the text could hold the broker's password.
      warn_once("can't park a task that this release doesn't know: #{error.class}")
      return false if refused?(error)

      @returned << unit.backstep_number
      true
    end

    private

    # A class that is there, but can't be loaded for what is missing in it, is known.
    def missing?(name)
      yield name
      false
    rescue NameError => error
      [name, *name.split("::")].include?(error.name.to_s)
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
      found = backstep_unknown(unit)
      super unless found && BackstepReporter.park(unit, *found)
    end

    def backstep_unknown(unit)
      found = BackstepReporter.unknown(unit) { |name| backstep_find(name) }
      # Once more where Sidekiq would look: while an app is developed, its classes come and go.
      @reloader.call { found = BackstepReporter.unknown(unit) { |name| backstep_find(name) } } if found
      found
    rescue StandardError, ScriptError
      nil # whatever it is, it is Sidekiq's to deal with
    end

    # As Sidekiq itself finds it: since 7, as Ruby does.
    def backstep_find(name)
      respond_to?(:constantize, true) ? constantize(name) : Object.const_get(name)
    end
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Backstep's reporter for Sidekiq (open source, 6 to 8; Ruby 2.5 and later). Loaded by RUBYOPT=-r<this file>.
#
# Sidekiq keeps the only copy of an executing task in memory. This file has it kept in Redis as well, so that what a
# killed worker was executing can be given back. It tells who the worker is, what it executes and how much it has done.
#
# It does nothing unless BACKSTEP_WORKER ends in this very process's id, as the launcher writes it: the programs that a
# worker starts inherit RUBYOPT and the variable, and have other ids. Even then it only waits until Sidekiq's command
# line is loaded, so that Bundler chooses the gems as ever.
#
# Keys, all under "backstep:sidekiq:": "workers" (sorted set: name, last beat), "worker:<name>" (hash, runs out),
# "held:<name>" (hash: number of the execution, to start, queue and untouched payload), "taken:<queue>:<name>" (list:
# payloads that were popped and are not in the hash yet; a moment), "canary:<id>" (hash, made by whoever sends it).
module BackstepReporter
  NAME = File.basename(__FILE__)
  OURS = "backstep:sidekiq:"
  WORKER = ENV["BACKSTEP_WORKER"].to_s
  BEAT_SECONDS = 5
  # Longer than Sidekiq's own registration (60), so that a ghost is never taken for somebody else's worker.
  LIVES_SECONDS = 75
  BLOCK_SECONDS = 2
  PREFIX = <<-LUA
    local ours, name = 'backstep:sidekiq:', ARGV[1]
    local worker, held = ours .. 'worker:' .. name, ours .. 'held:' .. name
    local function canary(raw)
      local id = string.match(raw, '^{"jid":"(backstep%-canary%-%x+)"')
      return id and ours .. 'canary:' .. id
    end
    -- Whether it may be executed: a canary that has run out or was taken back may not.
    local function hold(number, queue, raw)
      local key = canary(raw)
      if key and redis.call('EXISTS', key) == 0 then return false end
      if key then redis.call('HSET', key, 'state', 'executing', 'worker', name) end
      local now = redis.call('TIME')
      redis.call('HSET', held, number, string.format('%d.%06d', now[1], now[2]) .. '\\0' .. queue .. '\\0' .. raw)
      return true
    end
    local function give_back(number)
      local queue, raw = string.match(redis.call('HGET', held, number) or '', '^[%d%.]+%z(.-)%z(.*)$')
      if queue then redis.call('RPUSH', 'queue:' .. queue, raw); redis.call('HDEL', held, number) end
      return queue
    end
  LUA
  # ARGV: worker, number, queues -> {queue, payload} or nothing. Pops and notes in one step.
  TAKE = PREFIX + <<-LUA
    for i = 3, #ARGV do
      while true do
        local raw = redis.call('LINDEX', 'queue:' .. ARGV[i], -1)
        if not raw then break end
        local mine = hold(ARGV[2], ARGV[i], raw) -- first: a step that is refused here leaves the task where it is
        redis.call('RPOP', 'queue:' .. ARGV[i])
        if mine then return {ARGV[i], raw} end
      end
    end
    return false
  LUA
  # ARGV: worker, number, queue, payload, its list of taken ones or "" -> 1 if it is this worker's to execute.
  HOLD = PREFIX + <<-LUA
    local mine = hold(ARGV[2], ARGV[3], ARGV[4])
    if ARGV[5] ~= '' and redis.call('LREM', ARGV[5], -1, ARGV[4]) == 0 then
      redis.call('HDEL', held, ARGV[2])
      return 0
    end
    return mine and 1 or 0
  LUA
  # ARGV: worker, number, how it ended ("finished", "failed" or "" for neither) -> nothing.
  FINISH = PREFIX + <<-LUA
    local raw = string.match(redis.call('HGET', held, ARGV[2]) or '', '^[%d%.]+%z.-%z(.*)$')
    redis.call('HDEL', held, ARGV[2])
    local key = raw and canary(raw)
    if ARGV[3] == '' or (key and redis.call('EXISTS', key) == 0) then return end
    if key then redis.call('HSET', key, 'state', ARGV[3], 'worker', name) end
    if redis.call('EXISTS', worker) == 1 then redis.call('HINCRBY', worker, ARGV[3], 1) end
  LUA
  # ARGV: worker, then numbers -> how many were given back. One that is not held was given back by somebody else.
  GIVE_BACK = PREFIX + <<-LUA
    local count = 0
    for i = #ARGV, 2, -1 do if give_back(ARGV[i]) then count = count + 1 end end
    return count
  LUA
  # ARGV: worker, list of taken ones, queue, payload -> nothing.
  LET_GO = PREFIX + <<-LUA
    redis.call('RPUSH', 'queue:' .. ARGV[3], ARGV[4])
    if redis.call('LREM', ARGV[2], -1, ARGV[4]) == 0 then redis.call('RPOP', 'queue:' .. ARGV[3]) end
  LUA
  # ARGV: worker, seconds to live, then facts -> nothing.
  BEAT = PREFIX + <<-LUA
    local now = redis.call('TIME')
    now = string.format('%d.%06d', now[1], now[2])
    redis.call('HSETNX', worker, 'birth', now)
    redis.call('HSET', worker, 'beat', now, unpack(ARGV, 3))
    redis.call('EXPIRE', worker, ARGV[2])
    redis.call('ZADD', ours .. 'workers', now, name)
  LUA
  # ARGV: worker, seconds -> nothing. Forgets workers that were killed so long ago and hold nothing.
  FORGET = PREFIX + <<-LUA
    local limit = redis.call('TIME')[1] - ARGV[2]
    local queues = redis.call('SMEMBERS', 'queues')
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', ours .. 'workers', '-inf', limit, 'LIMIT', 0, 100)) do
      local left = redis.call('EXISTS', ours .. 'held:' .. other)
      for _, queue in ipairs(queues) do left = left + redis.call('EXISTS', ours .. 'taken:' .. queue .. ':' .. other) end
      if left == 0 then redis.call('ZREM', ours .. 'workers', other) end
    end
    redis.call('DEL', worker)
  LUA
  # ARGV: worker -> nothing. Whatever it still holds nobody executes any more.
  LEAVE = PREFIX + <<-LUA
    for _, number in ipairs(redis.call('HKEYS', held)) do give_back(number) end
    redis.call('DEL', worker)
    redis.call('ZREM', ours .. 'workers', name)
  LUA

  @pid = Process.pid
  @numbers = Mutex.new
  @number = 0
  @ended = Queue.new # executions whose end could not be noted, with how they ended
  @returned = Queue.new # executions that may be noted, and that nobody executes
  @quiet = false

  class << self
    attr_reader :on

    # Whether this process is the one that the launcher has started.
    def mine?
      WORKER.split("/").last == Process.pid.to_s
    end

    # Waits for Sidekiq's command line, whenever and by whatever it is loaded; then it is out of the way.
    def wait_for_sidekiq
      trace = TracePoint.new(:end) do |point|
        if point.path.end_with?("/sidekiq/cli.rb") && defined?(::Sidekiq::CLI) && point.self.equal?(::Sidekiq::CLI)
          trace.disable
          guarded("can't report") { attach }
        end
      end
      trace.enable
    end

    def attach
      # This process has it; what it starts from now on needs it no more.
      ENV["RUBYOPT"] = ENV["RUBYOPT"].to_s.split.reject { |option| option.end_with?(NAME) }.join(" ")
      at_exit { leave }
      ::Sidekiq.configure_server do |config|
        config.on(:startup) { guarded("can't report") { start(config) } }
        config.on(:quiet) do
          @quiet = true
          guarded("can't tell that it is quiet") { beat } if @on
        end
      end
    end

    def start(config)
      unusable = unusable_because
      return warn_once(unusable) if unusable

      options = config.respond_to?(:[]) ? config : ::Sidekiq.options
      queues = config.respond_to?(:capsules) ? config.capsules.values.flat_map(&:queues) : options[:queues]
      look_before_executing
      @facts = ["pid", @pid, "hostname", Socket.gethostname, "queues", queues.uniq.join("\0"),
        "identity", options[:identity].to_s, "version", ::Sidekiq::VERSION, "gates", @keeps_gates ? "fresh" : "",
        "finished", 0, "failed", 0]
      script(FORGET, 86_400)
      beat
      @facts = @facts[0...-4] # the counts go on by themselves
      define_canary
      ::Sidekiq::BasicFetch.prepend(Fetch)
      ::Sidekiq::BasicFetch::UnitOfWork.prepend(Unit)
      ::Sidekiq::Processor.prepend(Processing) if @parks_unknown || @keeps_gates
      @on = true
      Thread.new { keep_beating }.name = "backstep"
    end

    def unusable_because
      wanted = %i[retrieve_work bulk_requeue queues_cmd]
      known = wanted.all? { |name| ::Sidekiq::BasicFetch.method_defined?(name) }
      return "doesn't know this Sidekiq's way of fetching" unless known && defined?(::Sidekiq::BasicFetch::UnitOfWork)
      return "doesn't know Sidekiq Pro" if defined?(::Sidekiq::Pro)
      return "doesn't know namespaces" if ::Sidekiq.redis { |connection| connection.respond_to?(:namespace) }
    end

    # The canary that any worker can run: it does nothing.
    def define_canary
      job = %i[Worker Job].map { |name| ::Sidekiq.const_get(name) if ::Sidekiq.const_defined?(name) }
      job = job.find { |found| found.instance_of?(Module) }
      canary = Class.new do
        include job
        def perform; end
      end
      Object.const_set(:BackstepCanary, canary)
    end

    def script(text, *arguments)
      ::Sidekiq.redis { |connection| connection.call("EVAL", text, 0, WORKER, *arguments) }
    end

    def next_number
      @numbers.synchronize { (@number += 1).to_s }
    end

    # What a broken connection has left unknown is settled by the beat.
    def take(queues)
      number = next_number
      queue, raw = script(TAKE, number, *queues)
      [number, queue, raw] if queue
    rescue StandardError
      @returned << number
      raise
    end

    # Notes what was popped into a list of this worker's. Nothing comes back when it is not ours to execute any more.
    def hold(queue, raw, list)
      number = next_number
      number if script(HOLD, number, queue, raw, list) == 1
    rescue StandardError
      @returned << number
      raise
    end

    # Notes what was popped into this process, which holds the only copy. Without a note Sidekiq's own rules hold.
    def note(unit)
      unit.backstep_number = next_number
      unit.backstep_noted = true
      unit if script(HOLD, unit.backstep_number, unit.queue_name, unit.job, "") == 1
    rescue StandardError => error
      unit.backstep_noted = false
      warn_once("can't note a task, which Sidekiq executes all the same: #{error.message}")
      unit
    end

    def finish(number, how)
      script(FINISH, number, how)
    rescue StandardError
      @ended << [number, how]
    end

    def give_back(numbers)
      script(GIVE_BACK, *numbers)
    end

    def beat
      script(BEAT, LIVES_SECONDS, *@facts, "quiet", @quiet ? 1 : 0)
    end

    def keep_beating
      before = {}
      loop do
        sleep BEAT_SECONDS
        guarded("can't reach Redis") do
          beat
          settle
          before = sweep(before)
        end
      end
    end

    def settle
      @ended.size.times { finish(*@ended.pop) }
      @returned.size.times do
        number = @returned.pop
        begin
          give_back([number])
        rescue StandardError
          @returned << number
          raise
        end
      end
    end

    # Gives back what was popped two beats ago and has reached no thread: the answer to a pop got lost.
    def sweep(before)
      Fetch.lists.map do |list, queue|
        [list, let_go(list, queue) { |raws| raws & before.fetch(list, []) }]
      end.to_h
    end

    def let_go(list, queue)
      raws = ::Sidekiq.redis { |connection| connection.call("LRANGE", list, 0, -1) }
      yield(raws).each { |raw| script(LET_GO, list, queue, raw) }
      raws
    end

    def leave
      return unless @on && mine?

      guarded("can't take its leave") do
        settle
        Fetch.lists.each { |list, queue| let_go(list, queue) { |raws| raws } }
        script(LEAVE)
      end
    end

    def guarded(what)
      yield
    rescue StandardError, ScriptError => error
      warn_once("#{what}: #{error.class}: #{error.message}")
    end

    def warn_once(what)
      @warned ||= {}
      key = what[/\A[^:]*/]
      return if @warned[key]

      @warned[key] = true
      line = "Backstep's reporter #{what}"
      defined?(::Sidekiq.logger) ? ::Sidekiq.logger.warn(line) : warn(line)
    end
  end

  # In front of Sidekiq's own fetching: takes from the same queues in the same order, and notes in the same moment.
  module Fetch
    @lists = {}
    class << self
      attr_reader :lists
    end

    def retrieve_work
      queues = queues_cmd.grep(String).map { |queue| queue.delete_prefix("queue:") }
      return super if queues.empty?

      number, queue, raw = BackstepReporter.take(queues)
      return backstep_unit(queue, raw, number) if number

      return backstep_wait(queues.first) if queues.size == 1

      unit = super
      unit && BackstepReporter.note(unit)
    end

    def bulk_requeue(units, *rest)
      noted, others = units.partition(&:backstep_noted)
      unless noted.empty?
        count = BackstepReporter.give_back(noted.map(&:backstep_number))
        ::Sidekiq.logger.info("Pushed #{count} jobs back to Redis")
      end
      super(others, *rest)
    rescue StandardError => error
      # What is noted stays noted, and can be recovered.
      ::Sidekiq.logger.warn("Failed to requeue #{units.size} jobs: #{error.message}")
    end

    private

    # Waits for a task in the one queue; it goes from there to a list of this worker's in one step.
    def backstep_wait(queue)
      list = "#{OURS}taken:#{queue}:#{WORKER}"
      Fetch.lists[list] ||= queue
      raw = ::Sidekiq.redis do |connection|
        if connection.respond_to?(:blocking_call)
          connection.blocking_call(BLOCK_SECONDS, "BRPOPLPUSH", "queue:#{queue}", list, BLOCK_SECONDS)
        else
          connection.brpoplpush("queue:#{queue}", list, timeout: BLOCK_SECONDS)
        end
      end
      number = raw && BackstepReporter.hold(queue, raw, list)
      backstep_unit(queue, raw, number) if number
    end

    def backstep_unit(queue, raw, number)
      unit = ::Sidekiq::BasicFetch::UnitOfWork
      unit = unit.members.include?(:config) ? unit.new("queue:#{queue}", raw, config) : unit.new("queue:#{queue}", raw)
      unit.backstep_number = number
      unit.backstep_noted = true
      unit
    end
  end

  # One task that Sidekiq has fetched.
  module Unit
    attr_accessor :backstep_number, :backstep_noted

    # Sidekiq is done with it: called on the way out of an exception when it has failed.
    def acknowledge
      super
    ensure
      failure = $!
      moved_on = failure && failure.class.name == "Sidekiq::JobRetry::Skip"
      BackstepReporter.finish(backstep_number, moved_on ? "" : failure ? "failed" : "finished") if backstep_number
    end

    def requeue
      backstep_noted ? BackstepReporter.give_back([backstep_number]) : super
    end
  end

  if mine?
    require "socket"
    require_relative "backstep_sidekiq_unknown"
    wait_for_sidekiq
  end
end

# frozen_string_literal: true

# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Enqueues with Sidekiq's own client. Each line that it reads is a list in JSON: the broker's URL, whether the tasks are
# to be first, and what to push. It answers each with a line: "ok", or what went wrong.

require "json"
require "sidekiq"

pools = Hash.new { |known, url| known[url] = Sidekiq::RedisConnection.create(url: url) }
$stdout.sync = true
$stdin.each_line do |line|
  url, urgent, items = JSON.parse(line)
  items.each do |item|
    Sidekiq::Client.new(pools[url]).push(item)
    # Sidekiq's client has no means to this; a task lies first where the next is popped from.
    key = "queue:#{item["queue"]}"
    pools[url].with { |connection| connection.call("LMOVE", key, key, "LEFT", "RIGHT") } if urgent
  end
  puts "ok"
rescue StandardError => e
  puts "#{e.class}: #{e.message}".tr("\n", " ")
end

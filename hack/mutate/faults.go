// SPDX-License-Identifier: Apache-2.0

package main

// fault is something that could be wrong.
type fault struct {
	name  string
	edits []edit
	// tests are the packages that have to notice.
	tests []string
}

// edit puts other text in the place of one that a file has exactly once.
type edit struct{ file, right, wrong string }

const (
	bucket      = "internal/limiter/strategy/bucket.go"
	fixedWindow = "internal/limiter/strategy/fixedwindow.go"
	ring        = "internal/limiter/strategy/slidingwindowring.go"
	approximate = "internal/limiter/strategy/slidingwindowapproximate.go"
	log         = "internal/limiter/strategy/slidingwindowlog.go"
	permits     = "internal/limiter/strategy/concurrency.go"
	queue       = "internal/limiter/strategy/leakybucketqueue.go"
	call        = "internal/limiter/strategy/call.go"
	table       = "internal/limiter/strategy/table.go"
	evaluator   = "internal/limiter/strategy/evaluator.go"
	prelude     = "internal/limiter/strategy/prelude.lua"
	takeLua     = "internal/limiter/strategy/take.lua"
	store       = "internal/limiter/redisstore/redisstore.go"
	batcher     = "internal/limiter/redisstore/batch.go"
	shard       = "internal/limiter/redisstore/shard.go"
	memory      = "internal/limiter/memorystore/shard.go"
	engine      = "internal/limiter/engine.go"
	breaker     = "internal/limiter/guard/breaker.go"
	own         = "internal/limiter/guard/own.go"
	ledger      = "internal/fleet/ledger.go"
	account     = "internal/limiter/guard/account.go"
	tokenBucket = "internal/limiter/strategy/tokenbucket.go"
	client      = "internal/redisclient/redisclient.go"
	counter     = "internal/match/counter.go"
	roster      = "internal/limiter/roster/roster.go"
	seats       = "internal/limiter/roster/limits.go"
)

var (
	rules       = []string{"./internal/limiter/strategy", "./internal/limiter/memorystore", "./internal/limiter/redisstore"}
	stores      = rules[1:]
	redisStore  = rules[2:]
	memoryStore = rules[1:2]
	rosters     = []string{"./internal/limiter/roster"}
)

// faults are what has to be found. Those of a strategy are in its Lua and its Go alike, so that comparing the
// two shows nothing: the table of redisstore's tests has those of the Lua alone.
var faults = []fault{
	{"a bucket that refuses the last token", []edit{
		{bucket, "level - admitted * cost + TOLERANCE >= need", "level - admitted * cost > need"},
		{bucket, "level - (admitted - 1) * cost + TOLERANCE < need", "level - (admitted - 1) * cost <= need"},
		{bucket, "+tolerance >= b.need(cost)", " > b.need(cost)"},
	}, rules},
	{"a fixed window that refuses its last request", []edit{
		{fixedWindow, "floor((requests - count) / cost)", "floor((requests - count - 1) / cost)"},
		{fixedWindow, "fitting(l.Requests-w.count,", "fitting(l.Requests-w.count-1,"},
	}, rules},
	{"a ring that refuses its last request", []edit{
		{ring, "floor((requests - total) / cost)", "floor((requests - total - 1) / cost)"},
		{ring, "fitting(l.Requests-r.total,", "fitting(l.Requests-r.total-1,"},
	}, rules},
	{"an approximate window that refuses its last request", []edit{
		{approximate, "(admitted - 1) * cost) + cost > requests + TOLERANCE", "(admitted - 1) * cost) + cost >= requests"},
		{approximate, "admitted * cost) + cost <= requests + TOLERANCE", "admitted * cost) + cost < requests"},
		{approximate, "w.count(now)+float64(cost) <= float64(l.Requests)+tolerance", "w.count(now)+float64(cost) < float64(l.Requests)"},
	}, rules},
	{"a log that refuses its last request", []edit{
		{log, "floor((requests - total) / cost)", "floor((requests - total - 1) / cost)"},
		{log, "fitting(l.Requests-r.total,", "fitting(l.Requests-r.total-1,"},
	}, stores},
	{"a log that forgets a microsecond early", []edit{
		{log, "return element(log, i) < window end", "return element(log, i) < window - 1 end"},
		{log, "return e.age(1+i, now) < window }", "return e.age(1+i, now) < window-1 }"},
	}, rules},
	{"a limit that keeps its last permit", []edit{
		{permits, "floor((requests - p.used) / cost)", "floor((requests - p.used - 1) / cost)"},
		{permits, "fitting(l.Requests-p.used,", "fitting(l.Requests-p.used-1,"},
	}, rules},
	{"a crashed holder's permit that never comes back", []edit{
		{permits, "if p.soonest <= now then", "if false then"},
		{permits, "case p.soonest <= now:", "case false:"},
	}, rules},
	{"a permit that expires though it is renewed", []edit{
		{permits, "if renew then\n      extend(p, id, cost)", "if renew then\n"},
		{permits, "p.renew(t, at, now, l)", "p.keep(t, now)"},
	}, rules},
	{"a queue that refuses who comes as late as it may", []edit{
		{queue, "part <= longest_part", "part < longest_part"},
		{queue, "!q.next.after(latest)", "latest.after(q.next)"},
	}, rules},
	{"a queue that gives a hole to two", []edit{
		{queue, "header .. sub(holes, used + 1), true", "header .. holes, true"},
		{queue, "t.Next = append(q.header(t.Next), q.holes...)\n\tt.TTL", "t.Next = append(q.header(t.Next), before...)\n\tt.TTL"},
	}, rules},
	{"a queue that moves its last slot for any that is given back", []edit{
		{queue, "if told == receipt then", "if told >= receipt then"},
		{queue, "case last.ceil() == c.Receipt:", "case last.ceil() >= c.Receipt:"},
	}, rules},
	{"a bucket that charges what it refuses", []edit{
		{bucket, "local taken = admitted * cost", "local taken = max(1, admitted) * cost"},
		{bucket, "taken := t.Admitted * units", "taken := max(1, t.Admitted) * units"},
	}, rules},
	{"a fixed window that charges a peek", []edit{
		{fixedWindow, "local taken = admitted * cost", "local taken = admitted * max(1, cost)"},
		{fixedWindow, "taken := t.Admitted * cost", "taken := t.Admitted * max(1, cost)"},
	}, rules},
	{"a bucket that is given time when the clock steps back", []edit{
		{bucket, "if last <= now then\n      level, last = level + (now - last) * rate, now", "if last ~= now then\n      level, last = level + math.abs(now - last) * rate, now"},
		{bucket, "if last <= now {\n\t\tlevel += float64((now - last) * b.rate)", "if last != now {\n\t\tlevel += float64(math.Abs(now-last) * b.rate)"},
	}, rules},
	{"a fixed window that counts twice when the clock steps back", []edit{
		{fixedWindow, "stored <= latest then finish = stored end", "stored < 0 then finish = stored end"},
		{fixedWindow, "stored > finish && stored <= latest {", "stored > finish && stored < 0 {"},
	}, rules},
	{"a fixed window that starts anew when it is edited", []edit{
		{fixedWindow, "count = taken\n      -- A clock", "count = stored == finish and taken or 0\n      -- A clock"},
		{fixedWindow, "if stored > finish && stored", "if stored != finish {\n\t\t\tw.count = 0\n\t\t}\n\t\tif stored > finish && stored"},
	}, rules},
	{"an approximate window that counts too much when the clock is set back far", []edit{
		{approximate, "count = min(count, requests) end", "count = count end"},
		{approximate, "min(empty.current, float64(l.Requests))", "max(empty.current, 0)"},
	}, []string{rules[0], rules[2]}},
	{"a ring that starts anew when it is edited", []edit{
		{ring, "return current, total, write('<I4', total), true", "return current, 0, '', false"},
		{ring, "empty.total, empty.counts, empty.moved = r.total, binary.LittleEndian.AppendUint32(nil, uint32(r.total)), true\n", ""},
	}, rules},
	{"a counter that has another name after an edit of its limit", []edit{
		{counter, `n.seed(h.ID.Namespace, "counter",`, `n.seed(h.ID.Namespace, "counter", h.Limit.Window.String(), strconv.FormatInt(h.Limit.Requests, 10),`},
	}, []string{"./internal/match"}},
	{"a request that charges some of its limits", []edit{
		{takeLua, "if not shadow and admissions[hit] > admitted then", "if false then"},
		{evaluator, "if admitted {\n\t\ttimes = 1", "if true {\n\t\ttimes = 1"},
	}, stores},
	{"a refused request that charges shadow limits", []edit{
		{takeLua, "if any and admitted > 0 then takeTogether(from, size, admitted,", "if any then takeTogether(from, size, times,"},
		{evaluator, "if hits[i].Shadow && admitted {", "if hits[i].Shadow {"},
	}, stores},
	{"a shadow limit that refuses", []edit{
		{takeLua, "shadow = terms[first + 3] == 1", "shadow = terms[first + 3] == 2"},
		{evaluator, "allowed := hits[i].Shadow || e.take", "allowed := e.take"},
	}, stores},
	{"a refund that is lost", []edit{
		{takeLua, "if next then store(counter, first, next) end", "if next == 0 then store(counter, first, next) end"},
		{evaluator, "\tc.keep(s, now, &e.taking)\n\t// What", "\t// What"},
	}, rules},
	{"a refund of more than was taken", []edit{
		{bucket, "min(burst, level + max(0, cost - lost))", "min(burst, level + cost)"},
		{bucket, "b.level+max(0, float64(c.Cost)-lost)", "b.level+max(-lost, float64(c.Cost))"},
	}, rules},
	{"a counter without a time to live", []edit{
		{prelude, "call('SETEX', KEYS[counter], expiries[counter] - second, state)", "call('SET', KEYS[counter], state)"},
	}, redisStore},
	{"a time to live that is rounded down", []edit{
		{prelude, "(due - due % 1000000) / 1000000 + 1", "(due - due % 1000000) / 1000000"},
	}, redisStore},
	{"a duplicate key that is evaluated from a stale state", []edit{
		{takeLua, "values[counter], kinds[counter], changed[counter] = state,", "values[counter], kinds[counter], changed[counter] = values[counter] or state,"},
	}, redisStore},
	{"equal requests that are decided as one though another came between", []edit{
		{call, "if c.last[counter] != g {", "if c.last[counter] < 0 {"},
	}, rules},
	{"equal requests of which each is told the same", []edit{
		{table, "return (p.Charged - 1 - p.Nth) * p.Cost", "return 0"},
	}, rules},
	{"a batch in which each hit has its neighbor's verdict", []edit{
		{call, "h, a := &g.Hits[i], &answers[i]", "h, a := &g.Hits[i], &answers[max(0, i-1)]"},
	}, rules},
	{"a batch in which each request has its neighbor's answer", []edit{
		{batcher, "r.answer = answers[i]", "r.answer = answers[max(0, i-1)]"},
	}, redisStore},
	{"a request that departs after it was given up", []edit{
		{batcher, "if r.ctx.Err() != nil {", "if false {"},
		{batcher, "if r.stage == gone {\n\t\t\tcontinue", "if false {\n\t\t\tcontinue"},
	}, redisStore},
	{"a call with counters of another slot", []edit{
		{shard, "name := tag(r.Hits[0].Key)", "name := \"\""},
	}, redisStore},
	{"a value whose tail is that of a longer one", []edit{
		{prelude, "elseif #state == size then", "elseif size then"},
	}, redisStore},
	{"a batch that is sent again after any error", []edit{
		{store, "len(requests) > 1 && spoiled(err)", "len(requests) > 1"},
	}, redisStore},
	{"a batch that is sent again whole after any error", []edit{
		{store, "reply, err := script.Run(context.Background(), s.client, call.Keys(), args...).Slice()", `reply, err := script.EvalSha(context.Background(), s.client, call.Keys(), args...).Slice()
	if err != nil {
		reply, err = script.Eval(context.Background(), s.client, call.Keys(), args...).Slice()
	}`},
	}, redisStore},
	{"a pipeline that is sent again whole if the shard lacks one of its scripts", []edit{
		{shard, "\tfor _, c := range calls {\n\t\tc.answer(answers)", `	lacking := false
	for _, c := range calls {
		lacking = lacking || redis.HasErrorPrefix(c.reply.Err(), "NOSCRIPT")
	}
	for _, c := range calls {
		if script, args := s.scripts.of(&c.call); lacking {
			c.reply = script.Eval(context.Background(), s.node, c.call.Keys(), args...)
		}
	}
	for _, c := range calls {
		c.answer(answers)`},
	}, redisStore},
	{"a call that is sent again after silence", []edit{
		{store, "reply, err := script.Run(context.Background(), s.client, call.Keys(), args...).Slice()", `reply, err := script.Run(context.Background(), s.client, call.Keys(), args...).Slice()
	if Unanswered(err) {
		reply, err = script.Run(context.Background(), s.client, call.Keys(), args...).Slice()
	}`},
	}, redisStore},
	{"a client that sends again what was not answered", []edit{
		{client, "withoutURL(err))\n\t}\n\to.MaxRetries = -1", "withoutURL(err))\n\t}\n\to.MaxRetries = 3"},
	}, []string{"./internal/redisclient"}},
	{"a store in process that forgets what still counts", []edit{
		{memory, "if swept.expires > d.now {", "if swept.expires > d.now+2_000_000 {"},
	}, memoryStore},
	{"a store in process that gives a flood counters of its own", []edit{
		{memory, "!d.limits.haveRoom(l, weight) || l.sharing(d.now)", "!d.limits.haveRoom(l, weight)"},
	}, memoryStore},
	{"a roster with room for one key more", []edit{
		{seats, "case l.pool.keys < l.pool.most:", "case l.pool.keys <= l.pool.most:"},
	}, rosters},
	{"a roster that forgets a key whose counter lives", []edit{
		{roster, "if k.until < now {", "if k.until < now+3 {"},
	}, rosters},
	{"a roster that forgets who came again", []edit{
		{roster, "case known && k.until >= until:", "case known:"},
	}, rosters},
	{"a closed limit that admits when the store fails", []edit{
		{engine, "h.Distribution != PerReplica && !h.Shadow", "h.Distribution != PerReplica && h.Shadow"},
	}, []string{"./internal/limiter"}},
	{"a replica that goes on with the whole limit", []edit{
		{own, "h.Limit = part(h.Limit, share)", "_ = share"},
	}, []string{"./internal/limiter/guard"}},
	{"a replica whose every outage has a fresh budget", []edit{
		{own, "if !known {", "if known || !known {"},
	}, []string{"./internal/limiter/guard"}},
	{"a share that is granted before who held it knows", []edit{
		{ledger, "share = math.max(grant, holds)", "share = grant"},
	}, []string{"./internal/fleet"}},
	{"a breaker that lets everybody through as a probe", []edit{
		{breaker, "c.probing || time.Now()", "time.Now()"},
	}, []string{"./internal/limiter/guard"}},
	{"leases of a whole bucket", []edit{
		{tokenBucket, "t.Limit.Burst -= gained", "t.Limit.Burst -= 0 * gained"},
	}, []string{"./internal/limiter/strategy", "./internal/limiter/guard"}},
	{"a lease that outlives its window", []edit{
		{account, "lasts = min(lasts, v.Lasts)", "lasts = max(lasts, v.Lasts)"},
	}, []string{"./internal/limiter/guard"}},
	{"a lease that is never given back", []edit{
		{account, "if l.left > 0 {", "if l.left < 0 {"},
	}, []string{"./internal/limiter/guard"}},
	{"replicas that don't hear of each other's demand", []edit{
		{account, "max(a.everyone, a.demand.rate)", "max(0, a.demand.rate)"},
	}, []string{"./internal/limiter/guard"}},
}

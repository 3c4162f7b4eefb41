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
	take        = "internal/limiter/strategy/take.go"
	takeLua     = "internal/limiter/strategy/take.lua"
	store       = "internal/limiter/redisstore/redisstore.go"
	batcher     = "internal/limiter/redisstore/batch.go"
	memory      = "internal/limiter/memorystore/memorystore.go"
	engine      = "internal/limiter/engine.go"
	breaker     = "internal/limiter/guard/breaker.go"
	client      = "internal/redisclient/redisclient.go"
	counter     = "internal/match/counter.go"
)

var (
	rules       = []string{"./internal/limiter/strategy", "./internal/limiter/memorystore", "./internal/limiter/redisstore"}
	stores      = rules[1:]
	redisStore  = rules[2:]
	memoryStore = rules[1:2]
)

// faults are what has to be found. Those of a strategy are in its Lua and its Go alike, so that comparing the
// two shows nothing: the table of redisstore's tests has those of the Lua alone.
var faults = []fault{
	{"a bucket that refuses the last token", []edit{
		{bucket, "level + TOLERANCE >= need", "level > need"},
		{bucket, "level+tolerance >= need", "level > need"},
	}, rules},
	{"a fixed window that refuses its last request", []edit{
		{fixedWindow, "count + cost <= requests", "count + cost < requests"},
		{fixedWindow, "count+cost <= requests", "count+cost < requests"},
	}, rules},
	{"a ring that refuses its last request", []edit{
		{ring, "total + cost <= requests", "total + cost < requests"},
		{ring, "cost <= l.Requests-total", "cost < l.Requests-total"},
	}, rules},
	{"an approximate window that refuses its last request", []edit{
		{approximate, "count + cost <= requests + TOLERANCE", "count + cost < requests"},
		{approximate, "count+cost <= requests+tolerance", "count+cost < requests"},
	}, rules},
	{"a bucket that charges what it refuses", []edit{
		{bucket, "if allowed then level = level - cost end\n  if reset or allowed and cost > 0", "level = level - cost\n  if reset or cost > 0"},
		{bucket, "if v.Allowed {\n\t\tlevel -= cost\n\t}\n\tif reset || v.Allowed && cost > 0", "level -= cost\n\tif reset || cost > 0"},
	}, rules},
	{"a fixed window that charges a peek", []edit{
		{fixedWindow, "count = count + cost end", "count = count + max(1, cost) end"},
		{fixedWindow, "if moved or allowed and cost > 0", "if moved or allowed"},
		{fixedWindow, "count += cost", "count += max(1, cost)"},
		{fixedWindow, "(!v.Allowed || cost == 0)", "!v.Allowed"},
	}, rules},
	{"a bucket that is given time when the clock steps back", []edit{
		{bucket, "max(0, now - last)", "math.abs(now - last)"},
		{bucket, "max(0, now-last)", "math.Abs(now - last)"},
	}, rules},
	{"a fixed window that counts twice when the clock steps back", []edit{
		{fixedWindow, "stored <= latest then finish = stored end", "stored < 0 then finish = stored end"},
		{fixedWindow, "stored > finish && stored <= latest {", "stored > finish && stored < 0 {"},
	}, rules},
	{"a fixed window that starts anew when it is edited", []edit{
		{fixedWindow, "count = taken\n      -- A clock", "count = stored == finish and taken or 0\n      -- A clock"},
		{fixedWindow, "count = taken\n\t\t\tif stored > finish", "count = taken\n\t\t\tif stored != finish {\n\t\t\t\tcount = 0\n\t\t\t}\n\t\t\tif stored > finish"},
	}, rules},
	{"a ring that starts anew when it is edited", []edit{
		{ring, "return current, {total}, total, true", "return current, {}, 0, false"},
		{ring, "return ring{s, s.at(now), binary.LittleEndian.AppendUint32(nil, uint32(total))}, true", "return ring{slots: s, first: s.at(now)}, false"},
	}, rules},
	{"a counter that has another name after an edit of its limit", []edit{
		{counter, `n.seed(h.ID.Namespace, "counter",`, `n.seed(h.ID.Namespace, "counter", h.Limit.Window.String(), strconv.FormatInt(h.Limit.Requests, 10),`},
	}, []string{"./internal/match"}},
	{"a request that charges some of its limits", []edit{
		{takeLua, "if admitted or not hit.allowed then", "if true then"},
		{take, "case admitted || !verdicts[i].Allowed:", "case admitted || verdicts[i].Remaining >= 0:"},
	}, stores},
	{"a refused request that charges shadow limits", []edit{
		{takeLua, "if admitted then\n    for", "if true then\n    for"},
		{take, "if h.Shadow && admitted {", "if h.Shadow {"},
	}, stores},
	{"a shadow limit that refuses", []edit{
		{takeLua, "if args[at + 2] == 1 then", "if args[at + 2] == 2 then"},
		{take, "if !h.Shadow {\n\t\t\tverdicts[i], _", "if true {\n\t\t\tverdicts[i], _"},
		{take, "case h.Shadow:\n", ""},
		{take, "if h.Shadow && admitted {", "if false {"},
	}, stores},
	{"a counter without a time to live", []edit{
		{takeLua, ", 'PX', ttl)", ")"},
	}, redisStore},
	{"a time to live that is rounded down", []edit{
		{takeLua, "ceil(counter.ttl / 1000)", "floor(counter.ttl / 1000)"},
	}, redisStore},
	{"a batch that names a counter again for each of its hits", []edit{
		{take, "if index[h.Key] == 0 {", "if index[h.Key] >= 0 {"},
	}, redisStore},
	{"a batch in which each hit has its neighbor's verdict", []edit{
		{take, "r := reply[4*i:]", "r := reply[4*max(0, i-1):]"},
	}, rules},
	{"a batch in which each request has its neighbor's answer", []edit{
		{batcher, "r.answer = answers[i]", "r.answer = answers[max(0, i-1)]"},
	}, redisStore},
	{"a request that departs after it was given up", []edit{
		{batcher, "if r.ctx.Err() != nil {", "if false {"},
		{batcher, "b.waiting.Remove(r.place)\n", "_ = r.place\n"},
	}, redisStore},
	{"a batch that is sent again after any error", []edit{
		{store, "len(requests) > 1 && spoiled(err)", "len(requests) > 1"},
	}, redisStore},
	{"a call that is sent again after silence", []edit{
		{store, "return s.script.Run(context.Background(), s.client, keys, args...)\n", `cmd := s.script.Run(context.Background(), s.client, keys, args...)
	if Unanswered(cmd.Err()) {
		cmd = s.script.Run(context.Background(), s.client, keys, args...)
	}
	return cmd
`},
	}, redisStore},
	{"a client that sends again what was not answered", []edit{
		{client, "withoutURL(err))\n\t}\n\to.MaxRetries = -1", "withoutURL(err))\n\t}\n\to.MaxRetries = 3"},
	}, []string{"./internal/redisclient"}},
	{"a store in process that forgets what still counts", []edit{
		{memory, "if s.swept[s.hand].Expires > now {", "if s.swept[s.hand].Expires > now+1_000_000 {"},
	}, memoryStore},
	{"a store in process that gives a flood counters of its own", []edit{
		{memory, "l.counters >= s.max || l.sharing(now)", "l.counters >= s.max"},
	}, memoryStore},
	{"a closed limit that admits when the store fails", []edit{
		{engine, "hits[i].OnFailure == FailClosed && !hits[i].Shadow", "hits[i].OnFailure == FailClosed && hits[i].Shadow"},
	}, []string{"./internal/limiter"}},
	{"a breaker that lets everybody through as a probe", []edit{
		{breaker, "b.probing || time.Now()", "time.Now()"},
	}, []string{"./internal/limiter/guard"}},
}

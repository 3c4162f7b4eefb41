// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A report from the future is as good as one from the past: the store's clock has been set back.
//
// KEYS[1] the namespace's reports
// ARGV[1] milliseconds of silence after which an enforcer is forgotten
// returns the store's time in milliseconds, and the reports of all others
const collect = `
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local reply = {string.format('%.0f', ms)}
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then
  redis.call('DEL', KEYS[1]) -- Whoever wrote it there: the next reports will not find it in their way.
end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local at = tonumber(string.match(fields[i + 1], '^%d+'))
  if at and math.abs(ms - at) <= tonumber(ARGV[1]) then
    reply[#reply + 1] = fields[i + 1]
  else
    redis.call('HDEL', KEYS[1], fields[i])
  end
end
return reply
`

// Observed is a report, and how old it is by the store's clock.
type Observed struct {
	Report
	Age time.Duration
}

// Reader collects the reports of enforcers.
type Reader struct {
	client   redis.UniversalClient
	instance string
}

// NewReader gives a reader of the installation called instance.
func NewReader(client redis.UniversalClient, instance string) *Reader {
	return &Reader{client: client, instance: instance}
}

// Read gives the reports of these namespaces, in order of the pods' names. A namespace in which nobody
// reports is absent. It removes what is left of enforcers that have been silent for five minutes, and
// leaves out reports that it can't understand.
func (r *Reader) Read(ctx context.Context, namespaces ...string) (map[string][]Observed, error) {
	replies := make(map[string]*redis.Cmd, len(namespaces))
	// Not by its hash: a script that isn't known can't be told from others in a pipeline.
	_, err := r.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, n := range namespaces {
			replies[n] = pipe.Eval(ctx, collect, []string{reportsKey(r.instance, n)}, Window.Milliseconds())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading usage reports: %w", err)
	}
	reports := make(map[string][]Observed, len(replies))
	for n, reply := range replies {
		values, err := reply.StringSlice()
		if err != nil {
			return nil, fmt.Errorf("reading usage reports of namespace %s: %w", n, err)
		}
		if observed := observe(values); len(observed) > 0 {
			reports[n] = observed
		}
	}
	return reports, nil
}

// Check writes a word that nobody reads, and so says why enforcers can't leave reports, if that is the store's doing.
func (r *Reader) Check(ctx context.Context) error {
	// No namespace has an empty name, so the key is nobody's.
	if err := r.client.Set(ctx, reportsKey(r.instance, ""), "checked", Window).Err(); err != nil {
		return fmt.Errorf("checking that reports can be left: %w", err)
	}
	return nil
}

// observe reads the answer of the script collect.
func observe(values []string) []Observed {
	now, _ := strconv.ParseInt(values[0], 10, 64)
	var observed []Observed
	for _, v := range values[1:] {
		stamp, body, _ := strings.Cut(v, " ")
		at, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			continue
		}
		o := Observed{Age: max(0, time.Duration(now-at)*time.Millisecond)}
		if err := json.Unmarshal([]byte(body), &o.Report); err != nil {
			continue
		}
		observed = append(observed, o)
	}
	slices.SortFunc(observed, func(a, b Observed) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.field(), b.field()))
	})
	return observed
}

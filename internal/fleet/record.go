// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
)

// record is how many replicas share the pools of each group, by its name. It is what a replica keeps over its restarts:
// a container that starts again while the store is away would take the whole of each limit otherwise.
//
// What the store has granted isn't kept, since it grants that to others once a replica has been silent for a while. Nor is what
// was counted: the store knows that as soon as it answers, and without it each restart may admit a share of a
// limit once more.
type record map[string]int64

// recall gives what an earlier run has known, as far as there was one.
func (m *Member) recall() record {
	if m.o.File == "" {
		return nil
	}
	body, err := os.ReadFile(m.o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err != nil {
		m.o.Log.Error(err, "ignoring how many replicas there were")
		return nil
	}
	return r
}

// remember keeps for the next run how many replicas there are, if that is news. Before there are pools nothing is
// known, and what an earlier run knew stays.
func (m *Member) remember() {
	pools := *m.pools.Load()
	if m.o.File == "" || len(pools) == 0 {
		return
	}
	known := record{}
	for p, s := range pools {
		name := groupOf(p).String()
		known[name] = max(known[name], s.among())
	}
	if maps.Equal(known, m.saved) {
		return
	}
	m.saved = known
	if err := known.save(m.o.File); err != nil {
		m.o.Log.Error(err, "a restart will not know how many replicas there are")
	}
}

// save replaces the file in one step.
func (r record) save(path string) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding how many replicas there are: %w", err)
	}
	err = os.WriteFile(path+".new", body, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("saving how many replicas there are: %w", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
)

// grace is how long a policy must have been gone before it is dropped. Files that are being replaced,
// and halves of files that are being written, look for a moment as if policies were deleted.
const grace = 500 * time.Millisecond

// shelf is the policies that are enforced, each in its last good version.
type shelf struct {
	compile Compile
	// parsed is what the files held when they were last read, by their paths.
	parsed   map[string]parsed
	policies map[name]held
	revision configstore.Revision
}

type name struct{ namespace, name string }

// parsed is a file's content, and what it was found to mean.
type parsed struct {
	content  []byte
	policies []match.Policy
	errs     []error
}

// held is a policy, and where it is from.
type held struct {
	configstore.Policy
	path string
	// goneSince is when the policy was first missed. Zero while it is there.
	goneSince time.Time
}

// update takes in what the files hold at the time now, and gives all that is wrong with them.
//
// A policy that is wrong keeps its last good version, and so does every policy that a faulty file may
// have been meant to hold: one that is missing is dropped only when its file is in order. Nothing else
// waits for that.
func (s *shelf) update(now time.Time, contents map[string][]byte, unreadable map[string]error) []error {
	s.parse(contents)
	faults := map[string][]error{}
	for path, err := range unreadable {
		faults[path] = []error{err}
	}
	for path, p := range s.parsed {
		for _, err := range p.errs {
			faults[path] = append(faults[path], fmt.Errorf("%s: %w", path, err))
		}
	}
	found := s.find(faults)
	next := configstore.Revision{Epoch: s.revision.Epoch, Number: s.revision.Number + 1}
	added := s.add(found, next)
	if s.drop(found, faults, now) || added {
		s.revision = next
	}
	return flatten(faults)
}

// parse reads the files that have changed.
func (s *shelf) parse(contents map[string][]byte) {
	files := make(map[string]parsed, len(contents))
	for path, content := range contents {
		p, known := s.parsed[path]
		if !known || !bytes.Equal(p.content, content) {
			p = parsed{content: content}
			p.policies, p.errs = parse(content, s.compile)
		}
		files[path] = p
	}
	s.parsed = files
}

// find gives the policies of all files. One that is in them twice is in none of them, and a fault of each.
func (s *shelf) find(faults map[string][]error) map[name]held {
	found := map[name]held{}
	twice := map[name]bool{}
	for _, path := range slices.Sorted(maps.Keys(s.parsed)) {
		for _, p := range s.parsed[path].policies {
			n := name{p.Namespace, p.Name}
			first, known := found[n]
			if !known {
				found[n] = held{Policy: configstore.Policy{Policy: p}, path: path}
				continue
			}
			twice[n] = true
			err := fmt.Errorf("%s: %s %s/%s is in %s too", path, kind, p.Namespace, p.Name, first.path)
			faults[path] = append(faults[path], err)
			if first.path != path {
				faults[first.path] = append(faults[first.path], err)
			}
		}
	}
	for n := range twice {
		delete(found, n)
	}
	return found
}

// add takes over what is new or has changed, and says whether anything has.
func (s *shelf) add(found map[name]held, next configstore.Revision) (changed bool) {
	for n, p := range found {
		old, known := s.policies[n]
		p.Since = old.Since
		if !known || !reflect.DeepEqual(old.Policy, p.Policy) {
			p.Since = next
			changed = true
		}
		s.policies[n] = p
	}
	return changed
}

// drop forgets what has been gone for long enough, and says whether anything has.
func (s *shelf) drop(found map[name]held, faults map[string][]error, now time.Time) (changed bool) {
	for n, p := range s.policies {
		if _, there := found[n]; there {
			continue
		}
		switch {
		case faults[p.path] != nil || faults[filepath.Dir(p.path)] != nil:
			p.goneSince = time.Time{}
		case p.goneSince.IsZero():
			p.goneSince = now
		case now.Sub(p.goneSince) >= grace:
			delete(s.policies, n)
			changed = true
			continue
		}
		s.policies[n] = p
	}
	return changed
}

// snapshot gives the policies as they are now.
func (s *shelf) snapshot() configstore.Snapshot {
	policies := make([]configstore.Policy, 0, len(s.policies))
	for _, p := range s.policies {
		policies = append(policies, p.Policy)
	}
	slices.SortFunc(policies, func(a, b configstore.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return configstore.Snapshot{Revision: s.revision, Policies: policies}
}

// flatten gives the faults of all files, each once, in order of the files.
func flatten(faults map[string][]error) []error {
	var all []error
	for _, path := range slices.Sorted(maps.Keys(faults)) {
		for _, err := range faults[path] {
			if !slices.ContainsFunc(all, func(known error) bool { return errors.Is(known, err) }) {
				all = append(all, err)
			}
		}
	}
	return all
}

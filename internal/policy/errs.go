// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// errs collects what is wrong.
type errs field.ErrorList

// must adds an error unless ok.
func (e *errs) must(path *field.Path, ok bool, value any, detail string) {
	if !ok {
		*e = append(*e, field.Invalid(path, value, detail))
	}
}

// word wants one of some words, or none: then the default holds.
func (e *errs) word(path *field.Path, value string, words ...string) {
	ok := value == "" || slices.Contains(words, value)
	e.must(path, ok, value, "must be one of "+strings.Join(words, ", "))
}

// between wants a number in a range.
func (e *errs) between(path *field.Path, n, least, most int64) {
	e.must(path, n >= least, n, fmt.Sprintf("must be at least %d", least))
	e.must(path, n <= most, n, fmt.Sprintf("must be at most %d", most))
}

// entries wants a list that isn't too long, nor empty when it is given: an empty list says nothing clear.
func (e *errs) entries(path *field.Path, size int, given bool, most int) {
	e.must(path, size > 0 || !given, size, "must have at least 1 entry, or be left out")
	e.atMost(path, size, most, "entries")
}

// atMost wants a list, or a string, that isn't too long.
func (e *errs) atMost(path *field.Path, size, most int, what string) {
	e.must(path, size <= most, size, fmt.Sprintf("must have at most %d %s", most, what))
}

// pattern wants a string of a certain form and length.
func (e *errs) pattern(path *field.Path, value string, form *regexp.Regexp, most int, detail string) {
	e.must(path, len(value) <= most && form.MatchString(value), value, detail)
}

// member is one field of a union.
type member struct {
	name string
	set  bool
}

// union wants exactly one member to be set.
func (e *errs) union(path *field.Path, members ...member) {
	var names, set []string
	for _, m := range members {
		names = append(names, m.name)
		if m.set {
			set = append(set, m.name)
		}
	}
	detail := "exactly one of " + strings.Join(names, ", ") + " must be set"
	e.must(path, len(set) == 1, strings.Join(set, ", "), detail)
}

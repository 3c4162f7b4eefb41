// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
)

// bootstrapWait is how long a sidecar without policies says that it isn't ready.
const bootstrapWait = 2 * time.Second

// state is what the admin server tells of the sidecar.
type state struct {
	started  time.Time
	enforced atomic.Pointer[enforced]
	draining atomic.Bool
	revision *prometheus.GaugeVec
}

// enforced is the part of a snapshot that concerns this sidecar.
type enforced struct {
	Namespace string               `json:"namespace,omitempty"`
	Revision  configstore.Revision `json:"revision"`
	Policies  []match.Policy       `json:"policies"`
}

func newState(started time.Time) *state {
	return &state{
		started: started,
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weir_snapshot_revision",
			Help: "Number of the revision of the policies that are enforced.",
		}, []string{"namespace"}),
	}
}

// enforce notes that m, made of s, is what is enforced from now on.
func (st *state) enforce(s configstore.Snapshot, m *match.Matcher) {
	st.enforced.Store(&enforced{Namespace: s.Namespace, Revision: s.Revision, Policies: m.Policies()})
	st.revision.WithLabelValues(s.Namespace).Set(float64(s.Revision.Number))
}

// now gives what is enforced. It is zero before the first snapshot.
func (st *state) now() enforced {
	if e := st.enforced.Load(); e != nil {
		return *e
	}
	return enforced{}
}

// known says whether a snapshot has come.
func (st *state) known() bool { return st.enforced.Load() != nil }

// unready says why the sidecar should get no requests, or nil. Whether Redis answers has no part in it:
// each policy says itself what is to become of its requests then.
func (st *state) unready(now time.Time) error {
	switch {
	case st.draining.Load():
		return errors.New("draining")
	case !st.known() && now.Sub(st.started) < bootstrapWait:
		return errors.New("waiting for policies")
	}
	return nil
}

func (st *state) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := st.unready(time.Now()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

func (st *state) serveSnapshot(w http.ResponseWriter, _ *http.Request) {
	if !st.known() {
		http.Error(w, "no policies are known yet", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(st.now()) // A client that is gone misses nothing.
}

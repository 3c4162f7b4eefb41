// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/weir-dev/weir/test/playground"
)

// gate is between a manager and the API server, and has faults.
type gate struct {
	// kubeconfig is the path of an administrator's, through the gate.
	kubeconfig string
	server     *httptest.Server
	// hits are the requests that the present fault has answered.
	hits atomic.Int64

	mu    sync.Mutex
	fault fault
}

// fault answers a request in the API server's place, or says that it has not.
type fault func(http.ResponseWriter, *http.Request) (answered bool)

// newGate opens a gate without faults, until the test ends.
func newGate(t *testing.T) *gate {
	t.Helper()
	config := rest.CopyConfig(weir.ControlPlane.Config)
	config.NextProtos = []string{"http/1.1"}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	if target.Host == "" {
		target = &url.URL{Scheme: "https", Host: config.Host}
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // A watch has no end.
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	g := &gate{kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	g.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		fault := g.fault
		g.mu.Unlock()
		if fault != nil && fault(w, r) {
			g.hits.Add(1)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		g.server.CloseClientConnections()
		g.server.Close()
	})
	through := api.NewConfig()
	through.Clusters["gate"] = &api.Cluster{Server: g.server.URL}
	through.AuthInfos["admin"] = &api.AuthInfo{}
	through.Contexts["gate"] = &api.Context{Cluster: "gate", AuthInfo: "admin"}
	through.CurrentContext = "gate"
	if err := clientcmd.WriteToFile(*through, g.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return g
}

// set gives the gate another fault, or none, and ends all requests that are under way, watches too.
func (g *gate) set(f fault) {
	g.mu.Lock()
	g.fault = f
	g.mu.Unlock()
	g.hits.Store(0)
	g.server.CloseClientConnections()
}

// isPolicies says whether a request reads policies.
func isPolicies(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/ratelimitpolicies")
}

func isWatch(r *http.Request) bool { return r.URL.Query().Get("watch") != "" }

// down is an API server that isn't there.
func down(w http.ResponseWriter, _ *http.Request) bool {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close()
	}
	return true
}

// forbidden is what the API server says when the right to read policies has been revoked.
func forbidden(w http.ResponseWriter, r *http.Request) bool {
	return isPolicies(r) && refuse(w, http.StatusForbidden, "Forbidden")
}

// expired has every watch of policies end at once, since what it goes on from is too old, and every list take long.
func expired(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case !isPolicies(r):
		return false
	case isWatch(r):
		return refuse(w, http.StatusGone, "Expired")
	}
	select {
	case <-time.After(time.Second):
	case <-r.Context().Done():
	}
	return false
}

// empty lists no policies.
func empty(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case !isPolicies(r):
		return false
	case r.URL.Query().Get("sendInitialEvents") != "":
		return refuse(w, http.StatusUnprocessableEntity, "Invalid") // So that it is listed.
	case isWatch(r):
		<-r.Context().Done()
		return true
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"apiVersion": "ratelimit.weir.dev/v1alpha1", "kind": "RateLimitPolicyList", "metadata": {"resourceVersion": "1"}, "items": []}`)
	return true
}

// refuse answers with a Status of the API server's.
func refuse(w http.ResponseWriter, code int, reason string) bool {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": %q, "message": "a fault of the test", "code": %d}`, reason, code)
	return true
}

// behindGate has a manager that reaches the API server through a gate do the work until the test ends.
func behindGate(t *testing.T) (*gate, *playground.Manager) {
	t.Helper()
	g := newGate(t)
	stopManager(t)
	m := newManager(t, "gated", g.kubeconfig)
	return g, m
}

// stopManager has the usual manager do nothing until the test ends.
func stopManager(t *testing.T) {
	t.Helper()
	if err := weir.Manager.Stop(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := weir.Manager.Start(); err != nil {
			t.Error(err)
		}
	})
}

// newManager gives another replica, which is stopped when the test ends.
func newManager(t *testing.T, name, kubeconfig string) *playground.Manager {
	t.Helper()
	m, err := weir.NewManager(t.Context(), options, name, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Stop() }) // A leader that was cut off ends badly, as it should.
	return m
}

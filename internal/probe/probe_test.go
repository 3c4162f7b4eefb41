// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/weir-dev/weir/internal/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// path is where tests ask.
const path = "/probes/app/liveness"

// request is what an application sees of one.
type request struct {
	Method, Host, URI string
	Proto             string
	Header            http.Header
}

func TestTheApplicationIsAskedAsByTheKubelet(t *testing.T) {
	var got request
	app := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = request{Method: r.Method, Host: r.Host, URI: r.RequestURI, Proto: r.Proto, Header: r.Header}
	}))
	host := fmt.Sprintf("127.0.0.1:%d", app)
	usual := func(fields ...string) http.Header {
		h := http.Header{"User-Agent": {"kube-probe/1.37"}, "Accept": {"*/*"}, "Connection": {"close"}}
		for i := 0; i < len(fields); i += 2 {
			h[fields[i]] = append(h[fields[i]], fields[i+1])
		}
		return h
	}
	with := func(name string, value ...string) http.Header {
		h := usual()
		delete(h, name)
		if len(value) > 0 {
			h[name] = value
		}
		return h
	}
	for name, test := range map[string]struct {
		probe probe.HTTPGet
		want  request
	}{
		"a path": {
			probe.HTTPGet{Path: "/healthz"},
			request{Host: host, URI: "/healthz", Header: usual()},
		},
		"no path": {
			probe.HTTPGet{},
			request{Host: host, URI: "/", Header: usual()},
		},
		"a path without its slash": {
			probe.HTTPGet{Path: "healthz"},
			request{Host: host, URI: "/healthz", Header: usual()},
		},
		"a query and escapes": {
			probe.HTTPGet{Path: "/a%2Fb?full=1&x=a+b"},
			request{Host: host, URI: "/a%2Fb?full=1&x=a+b", Header: usual()},
		},
		"a path that is no URL": {
			probe.HTTPGet{Path: "/100%"},
			request{Host: host, URI: "/100%25", Header: usual()},
		},
		"a URL is no way out": {
			probe.HTTPGet{Path: "https://192.0.2.1/healthz"},
			request{Host: host, URI: "/healthz", Header: usual()},
		},
		"a host": {
			probe.HTTPGet{Path: "/", Headers: []probe.Header{{Name: "Host", Value: "shop.example"}}},
			request{Host: "shop.example", URI: "/", Header: usual()},
		},
		"headers, one of them twice": {
			probe.HTTPGet{Path: "/", Headers: []probe.Header{{Name: "x-probe", Value: "a"}, {Name: "X-Probe", Value: "b"}}},
			request{Host: host, URI: "/", Header: usual("X-Probe", "a", "X-Probe", "b")},
		},
		"another user agent": {
			probe.HTTPGet{Path: "/", Headers: []probe.Header{{Name: "User-Agent", Value: "us"}}},
			request{Host: host, URI: "/", Header: with("User-Agent", "us")},
		},
		"no Accept": {
			probe.HTTPGet{Path: "/", Headers: []probe.Header{{Name: "Accept"}}},
			request{Host: host, URI: "/", Header: with("Accept")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.probe.Port = app
			test.want.Method, test.want.Proto = "GET", "HTTP/1.1"
			if got := ask(t, probe.Probe{HTTPGet: &test.probe}); got.err != nil || got.status != http.StatusOK {
				t.Fatalf("got %+v", got)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheAnswerIsTheApplications(t *testing.T) {
	long := strings.Repeat("x", 20<<10)
	app := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/sick":
			http.Error(w, "no database", http.StatusInternalServerError)
		case "/moved":
			http.Redirect(w, r, "/here", http.StatusFound)
		case "/here":
			fmt.Fprint(w, "moved here")
		case "/absolute":
			http.Redirect(w, r, "http://"+r.Host+"/here", http.StatusFound)
		case "/elsewhere":
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(http.StatusFound)
		case "/around":
			http.Redirect(w, r, "/around", http.StatusFound)
		case "/long":
			fmt.Fprint(w, long)
		case "/broken":
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "five")
			panic(http.ErrAbortHandler)
		case "/secret":
			w.Header().Set("Set-Cookie", "session=1")
		}
	}))
	for name, test := range map[string]struct {
		path string
		want outcome
	}{
		"sick":                           {"/sick", outcome{status: 500, body: "no database\n"}},
		"moved on the same host":         {"/moved", outcome{status: 200, body: "moved here"}},
		"moved there by a whole URL":     {"/absolute", outcome{status: 200, body: "moved here"}},
		"moved to another host":          {"/elsewhere", outcome{status: 302}},
		"moved around and around":        {"/around", outcome{err: io.EOF}},
		"long, of which 10 KiB are read": {"/long", outcome{status: 200, body: long[:10<<10]}},
		"broken off":                     {"/broken", outcome{err: io.EOF}},
		"a cookie is not for everyone":   {"/secret", outcome{status: 200}},
	} {
		t.Run(name, func(t *testing.T) {
			wantOutcome(t, test.want, ask(t, probe.Probe{HTTPGet: &probe.HTTPGet{Port: app, Path: test.path}}))
		})
	}
	t.Run("an application that is dead answers nothing, so we don't", func(t *testing.T) {
		wantOutcome(t, outcome{err: io.EOF}, ask(t, probe.Probe{HTTPGet: &probe.HTTPGet{Port: closed(t), Path: "/"}}))
	})
}

func TestProtocols(t *testing.T) {
	told := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	t.Run("TLS, whatever the certificate", func(t *testing.T) {
		app := httptest.NewUnstartedServer(told)
		app.EnableHTTP2 = true
		app.StartTLS()
		t.Cleanup(app.Close)
		wantOutcome(t, outcome{status: 200, body: "HTTP/2.0"}, ask(t, probe.Probe{HTTPGet: &probe.HTTPGet{Port: portOf(app.Listener), TLS: true}}))
	})
	t.Run("HTTP/2 without TLS", func(t *testing.T) {
		app := httptest.NewUnstartedServer(told)
		app.Config.Protocols = new(http.Protocols)
		app.Config.Protocols.SetUnencryptedHTTP2(true)
		app.Start()
		t.Cleanup(app.Close)
		wantOutcome(t, outcome{status: 200, body: "HTTP/2.0"}, ask(t, probe.Probe{HTTPGet: &probe.HTTPGet{Port: portOf(app.Listener), HTTP2: true}}))
	})
}

func TestTCP(t *testing.T) {
	t.Run("a port that takes connections is well", func(t *testing.T) {
		app := serve(t, http.NotFoundHandler())
		wantOutcome(t, outcome{status: 200}, ask(t, probe.Probe{TCPSocket: &probe.TCPSocket{Port: app}}))
	})
	t.Run("one that takes none isn't", func(t *testing.T) {
		port := closed(t)
		wantOutcome(t, outcome{
			status: 503,
			body:   fmt.Sprintf("connecting to the application: dial tcp 127.0.0.1:%d: connect: connection refused\n", port),
		}, ask(t, probe.Probe{TCPSocket: &probe.TCPSocket{Port: port}}))
	})
}

func TestGRPC(t *testing.T) {
	l := listen(t)
	server, state := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	state.SetServingStatus("shop.Cart", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	bare := listen(t)
	without := grpc.NewServer()
	go func() { _ = without.Serve(bare) }()
	t.Cleanup(without.Stop)
	web := serve(t, http.NotFoundHandler())

	for name, test := range map[string]struct {
		probe probe.GRPC
		want  outcome
	}{
		"a server that serves": {probe.GRPC{Port: portOf(l)}, outcome{status: 200}},
		"a service that doesn't": {
			probe.GRPC{Port: portOf(l), Service: "shop.Cart"},
			outcome{status: 503, body: "the application is not serving: its status is 2\n"},
		},
		"a service that isn't there": {
			probe.GRPC{Port: portOf(l), Service: "shop.Checkout"},
			outcome{status: 503, body: "the application answered gRPC status \"5\": unknown service\n"},
		},
		"a server without health checks": {
			probe.GRPC{Port: portOf(bare)},
			outcome{status: 503, body: "the application answered gRPC status \"12\": unknown service grpc.health.v1.Health\n"},
		},
	} {
		t.Run(name, func(t *testing.T) { wantOutcome(t, test.want, ask(t, probe.Probe{GRPC: &test.probe})) })
	}
	for name, port := range map[string]uint16{"no gRPC": web, "nothing": closed(t)} {
		t.Run("a port with "+name, func(t *testing.T) {
			if got := ask(t, probe.Probe{GRPC: &probe.GRPC{Port: port}}); got.err != nil || got.status != http.StatusServiceUnavailable {
				t.Errorf("got %+v, want 503", got)
			}
		})
	}
}

func TestNothingElseIsPassedOn(t *testing.T) {
	asked := false
	app := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	ours := httptest.NewServer(probe.NewHandler(map[string]probe.Probe{path: {HTTPGet: &probe.HTTPGet{Port: app, Path: "/healthz"}}}))
	t.Cleanup(ours.Close)
	for _, r := range []struct{ method, path string }{
		{http.MethodGet, "/"},
		{http.MethodGet, "/healthz"},
		{http.MethodGet, "/probes/app/readiness"},
		{http.MethodGet, path + "/"},
		{http.MethodGet, path + "?full=1"},
		{http.MethodGet, "/probes//app/liveness"},
		{http.MethodHead, path},
		{http.MethodPost, path},
	} {
		t.Run(r.method+" "+r.path, func(t *testing.T) {
			if got := send(t, r.method, ours.URL+r.path); got.status != http.StatusNotFound {
				t.Errorf("got %+v, want 404", got)
			}
		})
	}
	if asked {
		t.Error("the application was asked")
	}
}

func TestAProbeEndsWithTheKubeletsPatience(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	app := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	}))
	ours := httptest.NewServer(probe.NewHandler(map[string]probe.Probe{path: {HTTPGet: &probe.HTTPGet{Port: app}}}))
	t.Cleanup(ours.Close)
	ctx, giveUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, ours.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		_, err := http.DefaultClient.Do(r)
		gone <- err
	}()
	<-began
	giveUp()
	<-ended
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestProbesAreReadAsTheyAreWritten(t *testing.T) {
	for want, p := range map[string]probe.Probe{
		`/probes/app/liveness={"httpGet":{"port":8080,"path":"/a?b=<c>","tls":true,"headers":[{"name":"Host","value":"$(x)"}]}}`: {
			HTTPGet: &probe.HTTPGet{Port: 8080, Path: "/a?b=<c>", TLS: true, Headers: []probe.Header{{Name: "Host", Value: "$(x)"}}},
		},
		`/probes/app/liveness={"tcpSocket":{"port":8080}}`:            {TCPSocket: &probe.TCPSocket{Port: 8080}},
		`/probes/app/liveness={"grpc":{"port":8080,"service":"s=1"}}`: {GRPC: &probe.GRPC{Port: 8080, Service: "s=1"}},
	} {
		t.Run(want, func(t *testing.T) {
			if diff := cmp.Diff(want, probe.Format(path, p)); diff != "" {
				t.Errorf("written (-want +got):\n%s", diff)
			}
			at, got, err := probe.Parse(want)
			if err != nil || at != path {
				t.Fatalf("got path %q, %v", at, err)
			}
			if diff := cmp.Diff(p, got); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProbesThatCannotBeAreTold(t *testing.T) {
	for s, want := range map[string]string{
		`/healthz={}`:                        "must begin with /probes/",
		path:                                 "reading what is asked at /probes/app/liveness: EOF",
		path + `={}`:                         "/probes/app/liveness must have exactly one of httpGet, tcpSocket and grpc",
		path + `={"tcpSocket":{},"grpc":{}}`: "/probes/app/liveness must have exactly one of httpGet, tcpSocket and grpc",
		path + `={"exec":{}}`:                `reading what is asked at /probes/app/liveness: json: unknown field "exec"`,
	} {
		t.Run(s, func(t *testing.T) {
			if _, _, err := probe.Parse(s); err == nil || err.Error() != want {
				t.Errorf("got error %v, want %s", err, want)
			}
		})
	}
}

// outcome is what the kubelet gets.
type outcome struct {
	status int
	body   string
	err    error
}

func wantOutcome(t *testing.T, want, got outcome) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(outcome{}), cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) || errors.Is(b, a) })); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
}

// ask asks a probe as the kubelet does.
func ask(t *testing.T, p probe.Probe) outcome {
	t.Helper()
	ours := httptest.NewServer(probe.NewHandler(map[string]probe.Probe{path: p}))
	defer ours.Close()
	return send(t, http.MethodGet, ours.URL+path)
}

func send(t *testing.T, method, url string) outcome {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("User-Agent", "kube-probe/1.37")
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the kubelet was sent elsewhere") },
	}
	resp, err := client.Do(r)
	if err != nil {
		return outcome{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Location", "Set-Cookie"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("the answer has %s", name)
		}
	}
	return outcome{status: resp.StatusCode, body: string(body)}
}

// serve runs an application and gives its port.
func serve(t *testing.T, h http.Handler) uint16 {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return portOf(s.Listener)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// closed gives a port that is taken, and takes no connections.
func closed(t *testing.T) uint16 {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(bound.(*syscall.SockaddrInet4).Port)
}

func portOf(l net.Listener) uint16 { return netip.MustParseAddrPort(l.Addr().String()).Port() }

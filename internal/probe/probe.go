// SPDX-License-Identifier: Apache-2.0

// Package probe asks an application what the kubelet would have asked it.
//
// Where connections to the application are redirected, so are the kubelet's, and its probes would be limited like
// any request. So it asks at a path of the sidecar's instead, one for each probe, and the answer is the
// application's: nothing is answered in its name.
package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Prefix is how the paths of all probes begin.
const Prefix = "/probes/"

// Path is where a container's probe is asked. Its name is one of the container's fields, like "liveness".
func Path(container, name string) string { return Prefix + container + "/" + name }

// Probe is what the kubelet asks: exactly one member is set.
type Probe struct {
	HTTPGet   *HTTPGet   `json:"httpGet,omitempty"`
	TCPSocket *TCPSocket `json:"tcpSocket,omitempty"`
	GRPC      *GRPC      `json:"grpc,omitempty"`
}

// TCPSocket is answered by a port that takes a connection.
type TCPSocket struct {
	Port uint16 `json:"port"`
}

// Format writes a probe and its path as [Parse] reads them.
func Format(path string, p Probe) string {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	_ = e.Encode(p) // Strings and numbers can always be written.
	return path + "=" + strings.TrimSpace(text.String())
}

// Parse reads a path and what is asked there, like /probes/app/liveness={"httpGet":{"port":8080,"path":"/healthz"}}.
func Parse(s string) (path string, p Probe, err error) {
	path, text, _ := strings.Cut(s, "=")
	if !strings.HasPrefix(path, Prefix) {
		return "", p, fmt.Errorf("must begin with %s", Prefix)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return "", p, fmt.Errorf("reading what is asked at %s: %w", path, err)
	}
	if !p.one() {
		return "", p, fmt.Errorf("%s must have exactly one of httpGet, tcpSocket and grpc", path)
	}
	return path, p, nil
}

func (p Probe) one() bool {
	n := 0
	for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
		if set {
			n++
		}
	}
	return n == 1
}

// Handler asks an application that listens on this host. Whoever may ask it can learn no more than the kubelet: what
// is asked, headers and all, is in the probe, and not in the request.
type Handler struct {
	probes       map[string]Probe
	http1, http2 *http.Client
}

// NewHandler gives a handler that answers GET at the paths of these probes, and 404 to everything else. It keeps no
// connections.
func NewHandler(probes map[string]Probe) *Handler {
	var one, two http.Protocols
	one.SetHTTP1(true)
	one.SetHTTP2(true) // Over TLS, if the application offers it.
	two.SetUnencryptedHTTP2(true)
	two.SetHTTP2(true)
	return &Handler{probes: probes, http1: newClient(&one), http2: newClient(&two)}
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := h.probes[r.URL.Path]
	if !ok || r.Method != http.MethodGet || r.URL.RawQuery != "" {
		http.NotFound(w, r)
		return
	}
	switch {
	case p.HTTPGet != nil:
		h.get(w, r, p.HTTPGet)
	case p.TCPSocket != nil:
		answer(w, connect(r.Context(), p.TCPSocket.Port))
	default:
		answer(w, h.check(r, p.GRPC))
	}
}

// answer tells a probe that isn't one of HTTP what has come of it.
func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// connect is why the probe isn't passed on as one of TCP: our own port would take the connection before we know
// whether the application's does.
func connect(ctx context.Context, port uint16) error {
	conn, err := dial(ctx, "tcp", address("", port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial reaches the application over loopback, where nothing is redirected.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("finding the port: %w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return nil, fmt.Errorf("connecting to the application: %w", err)
	}
	return conn, nil
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// host is the address that the kubelet has asked at. It is the pod's, by which it would have asked the application.
func host(r *http.Request) (string, error) {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return "", errors.New("the request did not come over a network")
	}
	host, _, err := net.SplitHostPort(local.String())
	if err != nil {
		return "", fmt.Errorf("reading the address of this host: %w", err)
	}
	return host, nil
}

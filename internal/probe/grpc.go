// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/encoding/protowire"
)

// GRPC is answered by the gRPC health checking protocol. It is asked for by a GET of ours, and not passed on: a call has
// one path for all probes, so that each would need a port of its own.
type GRPC struct {
	Port uint16 `json:"port"`
	// Service is that of the HealthCheckRequest. Empty is the server as a whole.
	Service string `json:"service,omitempty"`
	// TLS verifies no certificate, as the kubelet verifies none.
	TLS bool `json:"tls,omitempty"`
}

// Of grpc.health.v1: field 1 of a HealthCheckRequest is the service, field 1 of a HealthCheckResponse its status.
const (
	checkPath    = "/grpc.health.v1.Health/Check"
	serviceField = 1
	statusField  = 1
	serving      = 1
)

// maxMessage is more than any answer to a health check has.
const maxMessage = 4 << 10

// check calls the application. The error says why it isn't healthy, or hasn't answered.
func (h *Handler) check(asked *http.Request, g *GRPC) error {
	at, err := host(asked)
	if err != nil {
		return err
	}
	u := &url.URL{Scheme: "http", Host: address(at, g.Port), Path: checkPath}
	if g.TLS {
		u.Scheme = "https"
	}
	r, err := newRequest(asked.Context(), http.MethodPost, u, bytes.NewReader(g.message()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("User-Agent", userAgent(asked))
	resp, err := h.http2.Do(r)
	if err != nil {
		return fmt.Errorf("calling the application: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return verdict(resp, body)
}

// message is a HealthCheckRequest in its frame: no compression, and the length.
func (g *GRPC) message() []byte {
	m := protowire.AppendTag(nil, serviceField, protowire.BytesType)
	m = protowire.AppendString(m, g.Service)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// verdict reads a response whose body has been read.
func verdict(resp *http.Response, body []byte) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the application answered HTTP status %d", resp.StatusCode)
	}
	// Without a message, the status is among the headers.
	code, why := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if code == "" {
		code, why = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if code != "0" {
		return fmt.Errorf("the application answered gRPC status %q: %s", code, why)
	}
	status, err := statusIn(body)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if status != serving {
		return fmt.Errorf("the application is not serving: its status is %d", status)
	}
	return nil
}

// statusIn gives the status of a HealthCheckResponse in its frame. One that isn't there is 0, which is UNKNOWN.
func statusIn(frame []byte) (uint64, error) {
	const head = 5
	if len(frame) < head || frame[0] != 0 || uint64(len(frame)-head) != uint64(binary.BigEndian.Uint32(frame[1:head])) {
		return 0, errors.New("it is not one message")
	}
	var status uint64
	for m := frame[head:]; len(m) > 0; {
		field, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		m = m[n:]
		n = protowire.ConsumeFieldValue(field, kind, m)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		if field == statusField && kind == protowire.VarintType {
			status, _ = protowire.ConsumeVarint(m)
		}
		m = m[n:]
	}
	return status, nil
}

// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// HTTPGet is answered by the response to a request.
type HTTPGet struct {
	Port uint16 `json:"port"`
	// Path may have a query.
	Path string `json:"path,omitempty"`
	// TLS is asked for by the scheme HTTPS. No certificate is verified, as the kubelet verifies none.
	TLS bool `json:"tls,omitempty"`
	// HTTP2 is without TLS.
	HTTP2   bool     `json:"http2,omitempty"`
	Headers []Header `json:"headers,omitempty"`
}

// Header is a header of the request. Host is one of them.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
}

const (
	// maxBody is how much of a response the kubelet looks at.
	maxBody = 10 << 10
	// maxRedirects is how many the kubelet follows.
	maxRedirects = 10
)

// newClient gives a client that does as the kubelet's.
func newClient(p *http.Protocols) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Protocols:          p,
			DialContext:        dial,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // The kubelet does so as well.
			DisableKeepAlives:  true,
			DisableCompression: true,
		},
		CheckRedirect: func(r *http.Request, before []*http.Request) error {
			switch {
			case r.URL.Hostname() != before[0].URL.Hostname():
				return http.ErrUseLastResponse
			case len(before) >= maxRedirects:
				return errors.New("there are too many redirects")
			}
			return nil
		},
	}
}

// get passes on the application's answer, or gives none where it gives none: to a hook of the kubelet's any
// answer is a good one.
func (h *Handler) get(w http.ResponseWriter, asked *http.Request, g *HTTPGet) {
	status, header, body, err := h.ask(asked, g)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	// No other field means anything to the kubelet: a Location has been followed as far as it would.
	if kind, ok := header["Content-Type"]; ok {
		w.Header()["Content-Type"] = kind
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func (h *Handler) ask(asked *http.Request, g *HTTPGet) (status int, header http.Header, body []byte, err error) {
	r, err := g.request(asked)
	if err != nil {
		return 0, nil, nil, err
	}
	client := h.http1
	if g.HTTP2 {
		client = h.http2
	}
	resp, err := client.Do(r) //nolint:gosec // The pod's author says what is asked of the pod.
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var read bytes.Buffer
	if _, err := io.CopyN(&read, resp.Body, maxBody); err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, nil, err
	}
	return resp.StatusCode, resp.Header, read.Bytes(), nil
}

// request is the kubelet's, as if it had asked the application itself.
func (g *HTTPGet) request(asked *http.Request) (*http.Request, error) {
	at, err := host(asked)
	if err != nil {
		return nil, err
	}
	r, err := newRequest(asked.Context(), http.MethodGet, g.url(at), nil)
	if err != nil {
		return nil, err
	}
	for _, f := range g.Headers {
		r.Header.Add(f.Name, f.Value)
	}
	r.Host = r.Header.Get("Host")
	for name, usual := range map[string]string{"User-Agent": userAgent(asked), "Accept": "*/*"} {
		if _, ok := r.Header[name]; !ok {
			r.Header.Set(name, usual)
		}
	}
	if r.Header.Get("Accept") == "" {
		r.Header.Del("Accept")
	}
	return r, nil
}

// url takes a path that is none as it is, and of one that is a URL no more than the path and the query.
func (g *HTTPGet) url(host string) *url.URL {
	u, err := url.Parse(g.Path)
	if err != nil {
		u = &url.URL{Path: g.Path}
	}
	u.Scheme = "http"
	if g.TLS {
		u.Scheme = "https"
	}
	u.Host = address(host, g.Port)
	return u
}

// newRequest has the URL read again: the path of one that was put together may lack its first slash.
func newRequest(ctx context.Context, method string, u *url.URL, body io.Reader) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, method, u.String(), body)
}

// userAgent is the kubelet's, which tells a probe from a hook. No one else has a say in what is asked.
func userAgent(asked *http.Request) string {
	if a := asked.UserAgent(); strings.HasPrefix(a, "kube-") {
		return a
	}
	return ""
}

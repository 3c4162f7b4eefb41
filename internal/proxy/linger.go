// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net/http"
	"time"
)

// lingering is how long a request's body may still take when nobody needs it any more.
const lingering = 500 * time.Millisecond

// hurry makes reading the body fail after a while. net/http reads what a handler has left of it, even
// before it sends a response, to go on with the connection, and would wait for it forever.
func hurry(w http.ResponseWriter, r *http.Request) {
	if hasBody(r) {
		// It fails where there is no connection to read from, and so nothing to hurry.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingering))
	}
}

// linger reads the rest of the body after a response. A connection that is closed while the client sends is
// reset, and a reset takes the response from those who haven't read it yet.
func linger(w http.ResponseWriter, r *http.Request) {
	if hasBody(r) && http.NewResponseController(w).Flush() == nil {
		hurry(w, r)
		_, _ = io.Copy(io.Discard, r.Body) // An error is an end as well.
	}
}

// hasBody says whether the connection holds a body. Each body of HTTP/2 has a stream of its own, which ends
// with the handler.
func hasBody(r *http.Request) bool { return r.ProtoMajor == 1 && r.Body != http.NoBody }

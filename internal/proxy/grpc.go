// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weir-dev/weir/internal/limiter"
)

// grpcStatus is a status code of gRPC.
type grpcStatus int

const (
	grpcResourceExhausted grpcStatus = 8
	grpcUnimplemented     grpcStatus = 12
	grpcInternal          grpcStatus = 13
	grpcUnavailable       grpcStatus = 14
)

// isGRPC tells calls of gRPC and gRPC-Web from other requests.
func isGRPC(h http.Header) bool {
	return strings.HasPrefix(h.Get("Content-Type"), "application/grpc")
}

// writeGRPC answers a call without a message: the trailers of such an answer are its headers, and its
// HTTP status is 200.
func (f refusal) writeGRPC(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", "0")
	h.Set("Grpc-Status", strconv.Itoa(int(f.grpc)))
	h.Set("Grpc-Message", percentEncode(f.Detail))
	switch {
	case f.retryAfter == limiter.Never:
		// Stock clients take a negative number for "do not retry".
		h.Set("Grpc-Retry-Pushback-Ms", "-1")
	case f.retryAfter > 0:
		h.Set("Grpc-Retry-Pushback-Ms", strconv.FormatInt(milliseconds(f.retryAfter), 10))
		h.Set("Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(f.grpcDetails()))
	}
	w.WriteHeader(http.StatusOK)
}

// grpcDetails is a google.rpc.Status with a google.rpc.RetryInfo among its details, encoded by hand: it
// is all that this program has to say in protocol buffers.
func (f refusal) grpcDetails() []byte {
	var delay, info, detail, status []byte
	delay = appendVarint(delay, 1, int64(f.retryAfter/time.Second))
	delay = appendVarint(delay, 2, int64(f.retryAfter%time.Second))
	info = appendBytes(info, 1, delay)
	detail = appendBytes(detail, 1, []byte("type.googleapis.com/google.rpc.RetryInfo"))
	detail = appendBytes(detail, 2, info)
	status = appendVarint(status, 1, int64(f.grpc))
	status = appendBytes(status, 2, []byte(f.Detail))
	return appendBytes(status, 3, detail)
}

func appendVarint(b []byte, field protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// percentEncode encodes what a gRPC message may not hold as it is.
func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

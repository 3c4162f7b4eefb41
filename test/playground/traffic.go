// SPDX-License-Identifier: Apache-2.0

package playground

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Response is what a client got.
type Response struct {
	// At is when it came.
	At     time.Time
	Status int
	Header http.Header
	Body   string
}

// Get sends one request to a sidecar, as the client with this API key.
func Get(ctx context.Context, url, apiKey string) (Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Response{}, fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("X-Api-Key", apiKey)
	response, err := client.Do(request)
	if err != nil {
		return Response{}, fmt.Errorf("sending a request: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return Response{}, fmt.Errorf("reading a response: %w", err)
	}
	return Response{At: time.Now(), Status: response.StatusCode, Header: response.Header, Body: string(body)}, nil
}

// client keeps enough connections for the clients of a test, and waits for longer than any of them is held.
var client = &http.Client{
	Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	Timeout:   time.Minute,
}

// Tally counts answers.
type Tally struct {
	Allowed, Refused, Other int
}

// Add counts a response.
func (t *Tally) Add(r Response) {
	switch r.Status {
	case http.StatusOK:
		t.Allowed++
	case http.StatusTooManyRequests:
		t.Refused++
	default:
		t.Other++
	}
}

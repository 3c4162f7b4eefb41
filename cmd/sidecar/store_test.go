// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap/zapcore"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/redistest"
)

// flaky is a store that gives these errors, one after the other.
type flaky struct{ errs []error }

func (f *flaky) Take(context.Context, []limiter.Hit) ([]limiter.Verdict, error) { return nil, f.next() }

func (f *flaky) Refund(context.Context, []limiter.Charge) error { return f.next() }

func (f *flaky) Renew(context.Context, []limiter.Charge) error { return f.next() }

func (f *flaky) next() error {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

// lines gives a logger and what it has logged.
func lines() (logr.Logger, *[]string) {
	var logged []string
	return funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{}), &logged
}

func TestWhyTheStoreFailedIsToldForTenSeconds(t *testing.T) {
	log, _ := lines()
	store := watch(&flaky{errs: []error{io.EOF, fmt.Errorf("%w: %w", limiter.ErrNotAsked, goredis.ErrPoolTimeout), nil}}, log)
	now := time.Now()
	got := []string{store.reason(now)}
	for range 3 {
		_, _ = store.Take(t.Context(), nil)
		got = append(got, store.reason(time.Now()))
	}
	got = append(got, store.reason(time.Now().Add(toldFor)))
	if diff := cmp.Diff([]string{"", "unreachable", "timeout", "timeout", ""}, got); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

func TestAFailureIsLoggedTenTimesASecond(t *testing.T) {
	var log bytes.Buffer
	store := watch(&flaky{errs: slices.Repeat([]error{io.EOF}, 1000)}, newLogger(&log, zapcore.InfoLevel))
	begun := time.Now()
	for range 1000 {
		_, _ = store.Take(t.Context(), nil)
	}
	seconds := int(time.Since(begun)/time.Second) + 2 // Those that were begun count too.
	if n := bytes.Count(log.Bytes(), []byte("\n")); n > 10*seconds || n < 10 {
		t.Errorf("%d lines in %d seconds", n, seconds)
	}
}

const unreachable = `"msg"="the store did not answer" "error"="EOF" "reason"="unreachable"`

func TestAStoreThatComesBackIsToldOfOnce(t *testing.T) {
	for name, call := range map[string]func(store limiter.Store){
		"by decisions":             func(store limiter.Store) { _, _ = store.Take(t.Context(), nil) },
		"by what is given back":    func(store limiter.Store) { _ = store.Refund(t.Context(), nil) },
		"by permits to be renewed": func(store limiter.Store) { _ = store.Renew(t.Context(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			log, logged := lines()
			store := watch(&flaky{errs: []error{nil, io.EOF, io.EOF, nil, nil, io.EOF, nil}}, log)
			for range 7 {
				call(store)
			}
			again := `"level"=0 "msg"="the store answers again"`
			if diff := cmp.Diff([]string{unreachable, unreachable, again, unreachable, again}, *logged); diff != "" {
				t.Errorf("logged (-want +got):\n%s", diff)
			}
			if n := testutil.ToFloat64(store.failures.WithLabelValues("unreachable")); n != 3 {
				t.Errorf("%v failures are counted", n)
			}
		})
	}
}

func TestGreeting(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client(t)
	greet := func(t *testing.T, options *goredis.Options) []string {
		t.Helper()
		options.Addr, options.MaxRetries, options.DialerRetries, options.DisableIdentity = server.Addr, -1, 1, true
		client := goredis.NewClient(options)
		defer func() { _ = client.Close() }()
		log, logged := lines()
		watch(&flaky{}, log).greet(t.Context(), client)
		return *logged
	}

	t.Run("a Redis that answers is not worth a word", func(t *testing.T) {
		if got := greet(t, &goredis.Options{}); got != nil {
			t.Errorf("logged %q", got)
		}
	})

	t.Run("nor is a user who may not ping", func(t *testing.T) {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "counter", "on", "nopass", "~*", "+evalsha").Err(); err != nil {
			t.Fatal(err)
		}
		if got := greet(t, &goredis.Options{Username: "counter", Password: "any"}); got != nil {
			t.Errorf("logged %q", got)
		}
	})

	t.Run("a Redis that is away is told of before any request", func(t *testing.T) {
		server.Kill()
		if got := greet(t, &goredis.Options{}); len(got) != 1 {
			t.Errorf("logged %q, want one line", got)
		}
	})
}

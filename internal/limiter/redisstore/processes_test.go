// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/redistest"
)

// workerEnv makes the test binary a worker: it names the Redis, the algorithm and a seed.
const workerEnv = "WEIR_TEST_WORKER"

const (
	workers, clientsOfWorker = 4, 16
	// capacity is what there is in all. Every client asks at least fewest times, and up to twice that, so there
	// is not enough for all of them.
	capacity, fewest = 1_000, 20
)

func TestMain(m *testing.M) {
	if job := os.Getenv(workerEnv); job != "" {
		if err := work(job, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestExactAcrossProcesses would fail where a process decided anything by itself.
func TestExactAcrossProcesses(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	for _, algorithm := range []limiter.Algorithm{limiter.FixedWindow, limiter.TokenBucket} {
		t.Run(fmt.Sprintf("64 clients of 4 processes are admitted 1,000 times by %s", algorithm), func(t *testing.T) {
			for range times(3, 50) {
				if err := client.FlushAll(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
				// On a clock that stands still no window ends, and nothing is filled up.
				if err := client.Set(t.Context(), "clock", storetest.Epoch.UnixMicro(), 0).Err(); err != nil {
					t.Fatal(err)
				}
				seed := rand.Uint64()
				if admitted := admittedByAll(t, server, algorithm, seed); admitted != capacity {
					t.Errorf("seed %d: %d were admitted, not %d", seed, admitted, capacity)
				}
			}
		})
	}
}

// admittedByAll starts the workers, has them begin at once when all are ready, and adds up what they say.
func admittedByAll(t *testing.T, server *redistest.Server, algorithm limiter.Algorithm, seed uint64) int {
	t.Helper()
	type worker struct {
		cmd   *exec.Cmd
		start io.Closer
		out   *bufio.Reader
	}
	var all []worker
	for n := range workers {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		// The race detector would keep every worker for a second longer.
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0",
			fmt.Sprintf("%s=%s %s %d", workerEnv, server.Addr, algorithm, seed+uint64(n)))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, worker{cmd, in, bufio.NewReader(out)})
	}
	for _, w := range all {
		if _, err := w.out.ReadString('\n'); err != nil {
			t.Fatal("a worker is not ready: ", err)
		}
	}
	for _, w := range all {
		_ = w.start.Close()
	}
	sum := 0
	for _, w := range all {
		var admitted int
		if _, err := fmt.Fscan(w.out, &admitted); err != nil {
			t.Fatal("a worker has no result: ", err)
		}
		if err := w.cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		sum += admitted
	}
	return sum
}

// work is what a worker does: it says that it is ready, asks when its input ends, and says how often it was
// admitted.
func work(job string, in io.Reader, out io.Writer) error {
	var address, algorithm string
	var seed uint64
	if _, err := fmt.Sscan(job, &address, &algorithm, &seed); err != nil {
		return fmt.Errorf("reading %s: %w", workerEnv, err)
	}
	ctx := context.Background() //nolint:forbidigo // A worker is no test.
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DisableIdentity: true})
	defer func() { _ = client.Close() }()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	fmt.Fprintln(out, "ready")
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("waiting for the start: %w", err)
	}
	admitted, err := admittedByWorker(ctx, redisstore.NewOf(client, onClock), limiter.Algorithm(algorithm), seed)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, admitted)
	return nil
}

// admittedByWorker has the clients of a worker ask, each as often as the seed has it.
func admittedByWorker(ctx context.Context, store limiter.Store, algorithm limiter.Algorithm, seed uint64) (int64, error) {
	hit := limiter.Hit{Key: "shared", Limit: limiter.Limit{Algorithm: algorithm, Requests: capacity, Window: time.Hour, Burst: capacity}, Cost: 1}
	random := rand.New(rand.NewPCG(seed, 0))
	var admitted atomic.Int64
	var all errgroup.Group
	for range clientsOfWorker {
		asks := fewest + random.IntN(fewest)
		lazy := random.IntN(2) == 0
		all.Go(func() error {
			for range asks {
				verdicts, err := store.Take(ctx, []limiter.Hit{hit})
				if err != nil {
					return err
				}
				if verdicts[0].Allowed {
					admitted.Add(1)
				}
				if lazy {
					runtime.Gosched()
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return admitted.Load(), err
}

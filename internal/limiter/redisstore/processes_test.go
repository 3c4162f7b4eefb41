// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"bufio"
	"context"
	"errors"
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
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// workerEnv makes the test binary a worker: it names the Redis, the counter, the algorithm and a seed.
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
	testExactAcrossProcesses(t, "", server.URL(), func(t *testing.T, _ *rand.Rand) string {
		t.Helper()
		// On a clock that stands still no window ends, and nothing is filled up.
		err := client.FlushAll(t.Context()).Err()
		if err = errors.Join(err, client.Set(t.Context(), "clock", storetest.Epoch.UnixMicro(), 0).Err()); err != nil {
			t.Fatal(err)
		}
		return "shared"
	})
}

// TestExactAcrossProcessesOnACluster has the counter of each seed in another partition, and so on any shard.
func TestExactAcrossProcessesOnACluster(t *testing.T) {
	cluster := redistest.StartReplicated(t)
	client := dial(t, cluster.URL()+patience)
	testExactAcrossProcesses(t, " on a cluster of 6 nodes", cluster.URL(), func(t *testing.T, random *rand.Rand) string {
		t.Helper()
		partition := fmt.Sprintf("{shop/%d}", random.IntN(256))
		err := cluster.Flush(t.Context())
		if err = errors.Join(err, client.Set(t.Context(), partition+"clock", storetest.Epoch.UnixMicro(), 0).Err()); err != nil {
			t.Fatal(err)
		}
		return partition + "shared"
	})
}

// testExactAcrossProcesses has prepare empty the Redis, set its clock and name a counter before each run.
func testExactAcrossProcesses(t *testing.T, where, url string, prepare func(*testing.T, *rand.Rand) string) {
	for _, algorithm := range []limiter.Algorithm{limiter.FixedWindow, limiter.TokenBucket} {
		t.Run(fmt.Sprintf("64 clients of 4 processes are admitted 1,000 times by %s%s", algorithm, where), func(t *testing.T) {
			seeds, exact := times(50, 200), 0
			for range seeds {
				seed := rand.Uint64()
				key := prepare(t, rand.New(rand.NewPCG(seed, 0)))
				admitted := admittedByAll(t, fmt.Sprintf("%s %s %s", url, key, algorithm), seed)
				if admitted == capacity {
					exact++
				} else {
					t.Errorf("seed %d: %d were admitted, not %d", seed, admitted, capacity)
				}
			}
			t.Logf("expected: %d of %d seeds exactly %d; measured: %d", seeds, seeds, capacity, exact)
		})
	}
}

// admittedByAll starts the workers, has them begin at once when all are ready, and adds up what they say.
func admittedByAll(t *testing.T, job string, seed uint64) int {
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
			fmt.Sprintf("%s=%s %d", workerEnv, job, seed+uint64(n)))
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
	var url, key, algorithm string
	var seed uint64
	if _, err := fmt.Sscan(job, &url, &key, &algorithm, &seed); err != nil {
		return fmt.Errorf("reading %s: %w", workerEnv, err)
	}
	ctx := context.Background() //nolint:forbidigo // A worker is no test.
	client, err := redisclient.OpenCounting(url + patience)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	fmt.Fprintln(out, "ready")
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("waiting for the start: %w", err)
	}
	admitted, err := admittedByWorker(ctx, storeOf(client), key, limiter.Algorithm(algorithm), seed)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, admitted)
	return nil
}

// storeOf gives the store that fits a client, on the clock of the test.
func storeOf(client redis.UniversalClient) limiter.Store {
	if c, ok := client.(*redis.ClusterClient); ok {
		return redisstore.NewClusterOf(c, circuit, onClockOfSlot)
	}
	return redisstore.NewOf(client, onClock)
}

// admittedByWorker has the clients of a worker ask, each as often as the seed has it.
func admittedByWorker(ctx context.Context, store limiter.Store, key string, algorithm limiter.Algorithm, seed uint64) (int64, error) {
	hit := limiter.Hit{Key: key, Limit: limiter.Limit{Algorithm: algorithm, Requests: capacity, Window: time.Hour, Burst: capacity}, Cost: 1}
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

// SPDX-License-Identifier: Apache-2.0

// Command weir-sidecar enforces rate limits on the requests to one application.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
	// The image has no time zones of its own.
	_ "time/tzdata"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/weir-dev/weir/internal/redisclient"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // A second signal ends the process at once.
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "weir-sidecar:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "weir-sidecar:", err)
		os.Exit(1)
	}
}

// run is the sidecar, from its arguments to its end, which comes when ctx is done and all requests have had
// their answer, or when something vital fails.
//
// What args ask of the program itself is answered on stdout. All else goes to stderr, as a log.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "leave":
			return leave(ctx, args[1:], stdout)
		case "redirect":
			return redirectTo(args[1:], stdout)
		}
	}
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stdout, "weir-sidecar", version)
		return nil
	}
	log := newLogger(stderr, o.logLevel)
	redisclient.LogTo(log)
	s, err := newSidecar(o, log)
	if err != nil {
		return err
	}
	defer s.close()
	log.Info("starting", "version", version)
	return s.run(ctx)
}

// newLogger gives structured logs, a JSON object a line. Of one message it logs ten a second at most, so that
// what goes wrong with each request doesn't go wrong with the disk as well.
func newLogger(w io.Writer, level zapcore.Level) logr.Logger {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(zapcore.AddSync(w)), level)
	return zapr.NewLogger(zap.New(zapcore.NewSamplerWithOptions(core, time.Second, 10, 0)))
}

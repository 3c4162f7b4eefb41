// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zapcore"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/weir-dev/weir/internal/redisclient"
)

// options are the manager's flags.
type options struct {
	redis, configRedis      string
	instance                string
	leaderElect             bool
	leaderElectionNamespace string
	metricsAddress          string
	probeAddress            string
	logLevel                zapcore.Level
}

// usageError is a fault in the arguments.
type usageError struct{ error }

// parse reads the flags. What is wrong with them comes back as a usageError that names the flag.
func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("weir-manager", flag.ContinueOnError)
	fs.SetOutput(stderr)
	config.RegisterFlags(fs)
	fs.StringVar(&o.redis, "redis", "", "URL of the Redis that counters and usage reports are in (required)")
	fs.StringVar(&o.configRedis, "config-redis", "", "URL of the Redis that snapshots are published in (default: --redis)")
	fs.StringVar(&o.instance, "instance", "", "name that keeps this installation apart from others in one Redis (default: from the UID of namespace kube-system)")
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "work only while holding the leader lease, so that several replicas can run")
	fs.StringVar(&o.leaderElectionNamespace, "leader-election-namespace", "", "namespace of the leader lease (default: the manager's own)")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", ":8443", "address of the metrics, served over TLS to authorized clients; 0 serves none")
	fs.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address of /healthz and /readyz; 0 serves none")
	fs.TextVar(&o.logLevel, "log-level", zapcore.InfoLevel, "least severe level to log: debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, usageError{err}
	}
	if fs.NArg() > 0 {
		return o, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	if o.redis == "" {
		return o, usageError{errors.New("--redis is required: the URL of the Redis to publish to, like redis://weir-redis:6379")}
	}
	return o, nil
}

// stores are the Redis servers that the flags name. Their clients connect with the first command.
type stores struct {
	counters, configs redis.UniversalClient
}

func (o options) open() (stores, error) {
	counters, err := redisclient.Open(o.redis)
	if err != nil {
		return stores{}, usageError{fmt.Errorf("--redis: %w", err)}
	}
	configs, err := redisclient.Open(cmp.Or(o.configRedis, o.redis))
	if err != nil {
		return stores{}, usageError{fmt.Errorf("--config-redis: %w", err)}
	}
	return stores{counters: counters, configs: configs}, nil
}

// instanceOf gives the name of this installation: the flag's, or one that is the cluster's own.
func (o options) instanceOf(ctx context.Context, reader client.Reader) (string, error) {
	if o.instance != "" {
		return o.instance, nil
	}
	var kubeSystem corev1.Namespace
	if err := reader.Get(ctx, types.NamespacedName{Name: "kube-system"}, &kubeSystem); err != nil {
		return "", fmt.Errorf("reading the UID of namespace kube-system, which names this installation (or set --instance): %w", err)
	}
	const enough = 8 // Hexadecimal digits: one chance in four billion that two clusters agree.
	return string(kubeSystem.UID)[:enough], nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zapcore"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/controller"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redisusers"
)

// options are the manager's flags.
type options struct {
	redis, configRedis      string
	redisCredentials        string
	redisUsers              string
	sidecarCredentials      string
	instance                string
	kubeconfig              string
	namespace               string
	webhookPort             int
	webhookCertDir          string
	configDir               string
	leaderElect             bool
	leaderElectionNamespace string
	metricsAddress          string
	probeAddress            string
	logLevel                zapcore.Level
	version                 bool
}

// usageError is a fault in the arguments.
type usageError struct{ error }

func (e usageError) Error() string { return e.error.Error() + " (see weir-manager -h)" }

// parse reads the flags. What is wrong with them comes back as a usageError that names the flag. Help is written
// to stdout, and is [flag.ErrHelp].
func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("weir-manager", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // Whoever calls tells of errors.
	fs.StringVar(&o.redis, "redis", "", "`URL` of the Redis that counters and usage reports are in (required)")
	fs.StringVar(&o.configRedis, "config-redis", "", "`URL` of the Redis that snapshots are published in (default: --redis)")
	fs.StringVar(&o.redisCredentials, "redis-credentials", "", "`folder` with the files username, password and ca.crt for Redis, which may change (default: those of the URLs)")
	fs.StringVar(&o.redisUsers, "redis-users", "", "`name` of the Secret, in the manager's own namespace, with the users of a Redis of its own; it is made if it isn't there (default: Redis has users already)")
	fs.StringVar(&o.sidecarCredentials, "sidecar-redis-credentials", "", "`folder` with the files username, password and ca.crt that sidecars log in to Redis with, to be kept in each namespace that has opted in (default: with --redis-users those of its user, or else whoever installs keeps them there)")
	fs.StringVar(&o.instance, "instance", "", "`name` that keeps this installation apart from others in one Redis (default: from the UID of namespace kube-system)")
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "work only while holding the leader lease, so that several replicas can run")
	fs.StringVar(&o.leaderElectionNamespace, "leader-election-namespace", "", "`name` of the namespace of the leader lease (default: the manager's own)")
	fs.StringVar(&o.namespace, "namespace", "", "`name` of the manager's own namespace, where the Service and the certificate of its webhooks are, and the users of Redis (default: its service account's)")
	fs.IntVar(&o.webhookPort, "webhook-port", 0, "`port` to answer the API server's admission requests at; 0 answers none")
	fs.StringVar(&o.webhookCertDir, "webhook-cert-dir", "", "`folder` with the files tls.crt, tls.key and ca.crt for --webhook-port, which may change, and whose authority others have the API server trust (default: the manager keeps a certificate itself)")
	fs.StringVar(&o.configDir, "config-dir", "", "`folder` with sidecar.yaml, the settings of the sidecars that pods get (default: none get one)")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", ":8443", "`address` of the metrics, served over TLS to authorized clients; 0 serves none")
	fs.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "`address` of /healthz and /readyz; 0 serves none")
	fs.TextVar(&o.logLevel, "log-level", zapcore.InfoLevel, "least severe `level` to log: debug, info, warn or error")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says where the Kubernetes API is (default: $KUBECONFIG, ~/.kube/config, or the cluster that this runs in)")
	fs.BoolVar(&o.version, "version", false, "print the version, and nothing else")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stdout, "weir-manager compiles RateLimitPolicy objects for the sidecars and reports back onto them. Its flags are:")
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return o, err
	case err != nil:
		return o, usageError{err}
	case o.version:
		return o, nil
	case fs.NArg() > 0:
		return o, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	case o.redis == "":
		return o, usageError{errors.New("--redis is required: the URL of the Redis to publish to, like redis://weir-redis:6379")}
	}
	if err := o.check(); err != nil {
		return o, usageError{err}
	}
	return o, nil
}

// check says which flags don't go together, and which have values that can't be.
func (o options) check() error {
	switch {
	case o.webhookPort < 0 || o.webhookPort > 65535:
		return fmt.Errorf("--webhook-port must be from 0 to 65535, not %d", o.webhookPort)
	case o.configDir != "" && o.webhookPort == 0:
		return errors.New("--config-dir goes with --webhook-port only: the API server has to ask about pods")
	case o.webhookCertDir != "" && o.webhookPort == 0:
		return errors.New("--webhook-cert-dir goes with --webhook-port only: it is what is served there")
	case o.redisUsers != "" && (o.redisCredentials != "" || o.sidecarCredentials != ""):
		return errors.New("--redis-users excludes --redis-credentials and --sidecar-redis-credentials: it makes the users that these are given")
	}
	if o.instance != "" {
		if err := configstore.CheckInstance(o.instance); err != nil {
			return fmt.Errorf("--instance: %w", err)
		}
	}
	return nil
}

// newUsers gives the keeper of the users of a Redis of our own. Nil is none.
func (o options) newUsers(log logr.Logger) (*redisusers.Keeper, error) {
	if o.redisUsers == "" {
		return nil, nil
	}
	namespace, err := o.ownNamespace()
	if err != nil {
		return nil, err
	}
	return redisusers.New(types.NamespacedName{Namespace: namespace, Name: o.redisUsers}, log.WithName("redis")), nil
}

// credentialsForSidecars gives what sidecars log in to Redis with. Nil is nothing that we know of.
func (o options) credentialsForSidecars(users *redisusers.Keeper) controller.CredentialsSource {
	switch {
	case users != nil:
		return users.Sidecars
	case o.sidecarCredentials != "":
		return o.readSidecarCredentials
	}
	return nil
}

// readSidecarCredentials refuses the manager's own user: each namespace would have the rights to publish limits.
func (o options) readSidecarCredentials() (map[string][]byte, error) {
	files, err := redisclient.ReadCredentials(o.sidecarCredentials)
	if err != nil || o.redisCredentials == "" {
		return files, err
	}
	own, err := redisclient.ReadCredentials(o.redisCredentials)
	if err == nil && bytes.Equal(bytes.TrimSpace(own["username"]), bytes.TrimSpace(files["username"])) {
		return nil, fmt.Errorf("sidecars must not log in as %s, who is the manager", files["username"])
	}
	return files, err
}

// kubernetes finds the Kubernetes API, without a question to it.
func (o options) kubernetes() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	kube, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, usageError{errors.New("--kubeconfig is required outside a cluster: the file that says where the Kubernetes API is")}
	case err != nil:
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	kube.QPS = -1 // The API server shares itself out among its clients.
	return kube, nil
}

// stores are the Redis servers that the flags name. Their clients connect with the first command.
type stores struct {
	counters, configs redis.UniversalClient
}

// open opens the stores. With users, it is these who log in.
func (o options) open(users *redisusers.Keeper) (stores, error) {
	credentials := redisclient.CredentialsIn(o.redisCredentials)
	if users != nil {
		credentials = redisclient.LogIn(users.LogIn)
	}
	counters, err := redisclient.Open(o.redis, credentials)
	if err != nil {
		return stores{}, usageError{fmt.Errorf("--redis: %w", err)}
	}
	configs, err := redisclient.Open(cmp.Or(o.configRedis, o.redis), credentials)
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

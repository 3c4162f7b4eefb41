// SPDX-License-Identifier: Apache-2.0

// Command weir-manager compiles RateLimitPolicy objects into the config store and reports back onto them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
	// The image has no time zones of its own.
	_ "time/tzdata"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/weir-dev/weir/api/v1alpha1"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/controller"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/podcache"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redisusers"
	"github.com/weir-dev/weir/internal/usage"
	"github.com/weir-dev/weir/internal/workload"
)

// version is set by the linker.
var version = "dev"

func main() {
	err := run(ctrl.SetupSignalHandler(), os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "weir-manager:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "weir-manager:", err)
		os.Exit(1)
	}
}

// run is the manager, from its arguments to its end, which comes when ctx is done or something vital fails.
//
// What args ask of the program itself is answered on stdout. All else goes to stderr, as a log.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stdout, "weir-manager", version)
		return nil
	}
	logger := newLogger(stderr, o.logLevel)
	redisclient.LogTo(logger)

	users, err := o.newUsers(logger)
	if err != nil {
		return err
	}
	redis, err := o.open(users)
	if err != nil {
		return err
	}
	kube, err := o.kubernetes()
	if err != nil {
		return err
	}
	// Both are global, and so set by nobody but a manager that is to run.
	ctrl.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))
	logger.Info("starting", "version", version)
	admission, err := o.newAdmission(kube, logger)
	if err != nil {
		return err
	}
	mgr, err := newManager(kube, o, admission.server(), logger)
	if err != nil {
		return err
	}
	instance, err := o.instanceOf(ctx, mgr.GetAPIReader())
	if err != nil {
		return err
	}
	if err := addCredentials(mgr, users, o.credentialsForSidecars(users)); err != nil {
		return err
	}
	if err := addControllers(mgr, redis, instance, admission); err != nil {
		return err
	}
	if err := errors.Join(admission.addTo(mgr, redis, instance), admission.addMetrics(metrics.Registry)); err != nil {
		return err
	}
	logger.Info("configured", "instance", instance)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the manager: %w", err)
	}
	logger.Info("stopped")
	return nil
}

// leaseRetry is how often a replica looks at the leader's lease, and the leader renews it. Those who wait add up to
// 1.2 times as much at random.
const leaseRetry = 500 * time.Millisecond

// newManager gives a manager whose caches hold no more than the controllers look at.
func newManager(kube *rest.Config, o options, server webhook.Server, logger logr.Logger) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("registering API types: %w", err)
		}
	}
	accepted, err := labels.NewRequirement(controller.AcceptedLabel, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("selecting accepted specs: %w", err)
	}
	mgr, err := ctrl.NewManager(kube, ctrl.Options{
		Scheme: scheme,
		Logger: logger,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&appsv1.ControllerRevision{}: {Label: labels.NewSelector().Add(*accepted)},
				&corev1.Service{}:            {Transform: workload.KeepSelector},
				&appsv1.Deployment{}:         {Transform: workload.KeepSelector},
				&appsv1.StatefulSet{}:        {Transform: workload.KeepSelector},
				&appsv1.DaemonSet{}:          {Transform: workload.KeepSelector},
			},
		},
		Metrics: metricsserver.Options{
			BindAddress:    o.metricsAddress,
			SecureServing:  true,
			FilterProvider: filters.WithAuthenticationAndAuthorization,
		},
		WebhookServer:           server,
		HealthProbeBindAddress:  o.probeAddress,
		LeaderElection:          o.leaderElect,
		LeaderElectionNamespace: o.leaderElectionNamespace,
		LeaderElectionID:        "weir-manager.ratelimit.weir.dev",
		// Safe, because the process ends as soon as the manager does.
		LeaderElectionReleaseOnCancel: true,
		// A lease that is released is taken within 1.1 s.
		RetryPeriod: new(leaseRetry),
	})
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	for _, add := range []func(string, healthz.Checker) error{mgr.AddHealthzCheck, mgr.AddReadyzCheck} {
		if err := add("ping", healthz.Ping); err != nil {
			return nil, fmt.Errorf("adding a health check: %w", err)
		}
	}
	return mgr, nil
}

// addControllers wires policies to the config store, and pods and reports to status.
func addControllers(mgr ctrl.Manager, redis stores, instance string, admission *admission) error {
	pods, err := podcache.New(mgr)
	if err != nil {
		return err
	}
	board, reports, recorder := controller.NewBoard(), usage.NewReader(redis.counters, instance), mgr.GetEventRecorder("weir-manager")
	snapshots := controller.NewSnapshotReconciler(mgr.GetClient(), redisconfig.NewPublisher(redis.configs, instance, mgr.GetLogger().WithName("configstore")), board, recorder)
	if err := snapshots.SetupWithManager(mgr); err != nil {
		return err
	}
	if err := mgr.Add(controller.NewObserver(mgr.GetClient(), pods, reports, board)); err != nil {
		return fmt.Errorf("adding the observer: %w", err)
	}
	if err := mgr.Add(controller.NewCensus(snapshots, pods, fleet.NewCensus(redis.configs, instance))); err != nil {
		return fmt.Errorf("adding the census of pods: %w", err)
	}
	if admission.injects() {
		detector := controller.NewDetector(mgr.GetClient(), pods, reports, board, recorder, admission.namespace)
		if err := errors.Join(mgr.Add(detector), metrics.Registry.Register(detector)); err != nil {
			return fmt.Errorf("adding the detector of pods without a sidecar: %w", err)
		}
	}
	evictions := controller.NewEvictions(board, map[string]func(context.Context) (string, error){
		"counters":  func(ctx context.Context) (string, error) { return redisclient.EvictionPolicy(ctx, redis.counters) },
		"snapshots": func(ctx context.Context) (string, error) { return redisclient.EvictionPolicy(ctx, redis.configs) },
	})
	if err := errors.Join(mgr.Add(evictions), metrics.Registry.Register(evictions.Metrics())); err != nil {
		return fmt.Errorf("adding the watch on what stores evict: %w", err)
	}
	status := controller.NewRateLimitPolicyReconciler(mgr.GetClient(), board, recorder)
	if err := status.SetupWithManager(mgr); err != nil {
		return err
	}
	policies := controller.NewPolicyMetrics(mgr.GetClient(), mgr.Elected())
	if err := errors.Join(metrics.Registry.Register(policies), metrics.Registry.Register(snapshots.Metrics())); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return nil
}

// addCredentials wires the users of Redis, and what sidecars log in with, to Secrets. Either may be nil.
func addCredentials(mgr ctrl.Manager, users *redisusers.Keeper, forSidecars controller.CredentialsSource) error {
	if users != nil {
		if err := users.SetupWithManager(mgr); err != nil {
			return err
		}
	}
	if forSidecars == nil {
		return nil
	}
	return controller.NewCredentialsReconciler(mgr.GetClient(), mgr.GetAPIReader(), forSidecars, mgr.GetLogger().WithName("credentials")).SetupWithManager(mgr)
}

// newLogger gives structured logs, a JSON object a line.
func newLogger(w io.Writer, level zapcore.Level) logr.Logger {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	return zapr.NewLogger(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(zapcore.AddSync(w)), level)))
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/match"
)

// The spec of a policy that leaves nothing to be said of it.
const plain = `
targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}]
limits:
- {name: all, strategy: {tokenBucket: {requests: 100, window: 1m}}}
`

func TestAdvice(t *testing.T) {
	for name, test := range map[string]struct {
		spec string
		// before and other are what is in force of the policy itself, and of another one.
		before, other string
		want          []string
	}{
		"a plain policy needs none":          {spec: plain},
		"one that stays as it is needs none": {spec: plain, before: plain},

		"a header can be chosen by any client": {
			spec: `
selector: {}
limits:
- name: per-key
  key: [{method: {}}, {header: {name: x-api-key}}]
  strategy: {tokenBucket: {requests: 1, window: 1s}}`,
			want: []string{"spec.limits[0].key[1].header.name: any client can choose x-api-key, and have a fresh counter with each new value: add a limit by clientIP, or one without a key"},
		},
		"a limit by address bounds who chooses headers": {
			spec: `
selector: {}
limits:
- {name: per-key, key: [{header: {name: x-api-key}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: per-client, key: [{clientIP: {}}], strategy: {tokenBucket: {requests: 5, window: 1s}}}`,
		},
		"a limit of other requests, or one that only watches, bounds nobody": {
			spec: `
selector: {}
limits:
- {name: per-key, key: [{header: {name: x-api-key}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: posts, when: [{methods: [POST]}], strategy: {tokenBucket: {requests: 5, window: 1s}}}
- {name: all, enforcement: Shadow, strategy: {tokenBucket: {requests: 5, window: 1s}}}`,
			want: []string{"spec.limits[0].key[0].header.name: any client can choose x-api-key, and have a fresh counter with each new value: add a limit by clientIP, or one without a key"},
		},
		"a limit that only watches can't be evaded": {
			spec: `
selector: {}
enforcement: Shadow
limits:
- {name: per-key, key: [{header: {name: x-api-key}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}`,
		},

		"a limit that is too low to be leased stays exact": {
			spec: `
selector: {}
distribution: {mode: Leased}
limits:
- {name: high, strategy: {tokenBucket: {requests: 1000, window: 1s}}}
- {name: low, strategy: {tokenBucket: {requests: 10, window: 1m}}}`,
			want: []string{"spec.limits[1]: is too low, or too short, to take shares of in advance, and is decided by the store for each request as if the distribution were Exact"},
		},
		"a stricter limit of all ports leaves nothing to refuse": {
			spec: plain,
			other: `
targetRefs: [{group: "", kind: Service, name: checkout}]
limits:
- {name: fewer, strategy: {tokenBucket: {requests: 100, window: 1m, burst: 10}}}`,
			want: []string{`spec.limits[0]: never refuses anything, since limit "fewer" of policy "other" counts the same requests and is at least as strict`},
		},
		"so does one of every pod": {
			spec:  plain,
			other: `{selector: {}, limits: [{name: fewer, strategy: {tokenBucket: {requests: 1, window: 1m}}}]}`,
			want:  []string{`spec.limits[0]: never refuses anything, since limit "fewer" of policy "other" counts the same requests and is at least as strict`},
		},
		"a limit of another port, window, burst, key or request leaves something": {
			spec: plain,
			other: `
targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}, {group: "", kind: Service, name: checkout, sectionName: grpc}]
limits:
- {name: window, strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: burst, strategy: {tokenBucket: {requests: 1, window: 1m, burst: 101}}}
- {name: key, key: [{clientIP: {}}], strategy: {tokenBucket: {requests: 1, window: 1m}}}
- {name: requests, when: [{methods: [GET]}], strategy: {tokenBucket: {requests: 1, window: 1m}}}
- {name: shadow, enforcement: Shadow, strategy: {tokenBucket: {requests: 1, window: 1m}}}`,
		},
		"a limit that each replica counts by itself leaves what all send together": {
			spec:  plain,
			other: `{selector: {}, distribution: {mode: PerReplica}, limits: [{name: fewer, strategy: {tokenBucket: {requests: 1, window: 1m}}}]}`,
		},
		"a limit of all replicas leaves nothing to one that each counts by itself": {
			spec:  `{selector: {}, distribution: {mode: PerReplica}, limits: [{name: all, strategy: {tokenBucket: {requests: 100, window: 1m}}}]}`,
			other: `{selector: {}, limits: [{name: fewer, strategy: {tokenBucket: {requests: 1, window: 1m}}}]}`,
			want:  []string{`spec.limits[0]: never refuses anything, since limit "fewer" of policy "other" counts the same requests and is at least as strict`},
		},
		"a limit of one port leaves the others": {
			spec:  `{targetRefs: [{group: "", kind: Service, name: checkout}], limits: [{name: all, strategy: {tokenBucket: {requests: 100, window: 1m}}}]}`,
			other: plain,
		},

		"another distribution starts anew": {
			before: `{selector: {}, limits: [{name: all, strategy: {tokenBucket: {requests: 1, window: 1m}}}]}`,
			spec:   `{selector: {}, distribution: {mode: PerReplica}, limits: [{name: all, strategy: {tokenBucket: {requests: 1, window: 1m}}}]}`,
			want:   []string{`spec.limits: limit "all", in force now, starts with fresh counters: its distribution changes`},
		},
		"what ends or starts anew is told": {
			before: `
targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}, {group: "", kind: Service, name: checkout, sectionName: grpc}]
limits:
- {name: all, strategy: {slidingWindow: {requests: 1, window: 1s}}}
- {name: per-client, key: [{clientIP: {}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: per-host, key: [{host: {}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: gone, strategy: {tokenBucket: {requests: 1, window: 1s}}}`,
			spec: `
targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}]
limits:
- {name: all, strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: per-client, key: [{clientIP: {ipv6PrefixLength: 48}}], strategy: {tokenBucket: {requests: 1, window: 1s}}}
- {name: per-host, key: [{host: {}, onMissing: Deny}], strategy: {tokenBucket: {requests: 2, window: 1m}}}`,
			want: []string{
				"spec: target Service/checkout/grpc, in force now, ends",
				`spec.limits: limit "all", in force now, starts with fresh counters: its strategy changes`,
				`spec.limits: limit "per-client", in force now, starts with fresh counters: its key changes`,
				`spec.limits: limit "gone", in force now, ends`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := policyOf(t, "p", test.spec)
			var inForce []match.Policy
			if test.before != "" {
				inForce = append(inForce, inCluster(t, policyOf(t, "p", test.before)))
			}
			if test.other != "" {
				inForce = append(inForce, inCluster(t, policyOf(t, "other", test.other)))
			}
			if diff := cmp.Diff(test.want, Advise(p, inCluster(t, p), inForce)); diff != "" {
				t.Errorf("advice (-want +got):\n%s", diff)
			}
		})
	}
}

func policyOf(t *testing.T, name, spec string) *v1alpha1.RateLimitPolicy {
	t.Helper()
	p := &v1alpha1.RateLimitPolicy{}
	p.Namespace, p.Name = "shop", name
	unmarshal(t, []byte(spec), &p.Spec)
	return p
}

// inCluster compiles a policy where the Service checkout has the ports http and grpc.
func inCluster(t *testing.T, p *v1alpha1.RateLimitPolicy) match.Policy {
	t.Helper()
	checkout := Workload{
		Pods:  &metav1.LabelSelector{MatchLabels: map[string]string{"app": "checkout"}},
		Ports: []Port{{Name: "http"}, {Name: "grpc"}},
	}
	c, err := Compile(p, Workloads{{Kind: "Service", Name: "checkout"}: checkout})
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		t.Fatal(refusal)
	}
	return c
}

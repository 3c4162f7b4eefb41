// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/weir-dev/weir/test/playground"
)

// unseen are the rights that no request of a test shows, and what they are for.
var unseen = map[right]string{
	{"ratelimit.weir.dev", "ratelimitpolicies/finalizers", "update"}: "OwnerReferencesPermissionEnforcement asks for it when a ControllerRevision is created",
	{"", "secrets", "update"}: "the certificate of the webhooks is renewed after 60 days",
	{"", "events", "patch"}:   "the events of more than ten leaders in ten minutes are combined",
}

// right is one verb on one resource, with its subresource.
type right struct{ group, resource, verb string }

func (r right) String() string { return strings.TrimSpace(r.verb + " " + r.group + " " + r.resource) }

// auditEvent is what matters of an entry of the audit log.
type auditEvent struct {
	Verb             string
	ImpersonatedUser *struct{ Username string }
	ObjectRef        *struct{ Resource, Subresource, APIGroup string }
	ResponseStatus   *struct{ Code int }
	RequestURI       string
}

func TestTheManagerHasTheRightsThatItUses(t *testing.T) {
	const name = "rights"
	// What has happened before is in the log as well, but this test stands alone.
	apply(t, name, several)
	awaitReady(t, name)
	edit(t, name, strings.Replace(several, "100000", "100001", 1))
	awaitReady(t, name)
	askWebhooks(t)
	optInAndOut(t)
	eventually(t, patience, "the manager answers who may see its metrics", func() bool { return metricsOf(t, weir.Manager, metricsReader(t)) != "" })

	granted := grantedRights(t)
	var used map[right]int
	var denied []string
	// The audit log comes with a delay.
	unused := func() []right {
		used, denied = usedRights(t)
		var left []right
		for r := range granted {
			// Whoever can't begin a watch with a list, or must begin it anew, lists before.
			if r.verb == "list" && used[right{r.group, r.resource, "watch"}] > 0 {
				continue
			}
			if used[r] == 0 && unseen[r] == "" {
				left = append(left, r)
			}
		}
		slices.SortFunc(left, func(a, b right) int { return strings.Compare(a.String(), b.String()) })
		return left
	}
	for end := time.Now().Add(patience / 3); len(unused()) > 0 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
	}
	for _, r := range unused() {
		t.Errorf("granted, and never used: %s", r)
	}
	for _, d := range denied {
		t.Errorf("denied: %s", d)
	}
	for r := range granted {
		if r.group == rbacv1.APIGroupAll || r.resource == rbacv1.ResourceAll || r.verb == rbacv1.VerbAll {
			t.Errorf("a wildcard is granted: %s", r)
		}
	}
	tell(t, "K21", "0 requests denied, 0 verbs granted and unused, 0 wildcards", "%d of %d, %d of %d (%d more show in no request), 0",
		len(denied), requestsOf(used), len(unused()), len(granted), len(unseen))
}

func requestsOf(used map[right]int) int {
	n := 0
	for _, requests := range used {
		n += requests
	}
	return n
}

// optInAndOut has a namespace get its credentials, and lose them again.
func optInAndOut(t *testing.T) {
	t.Helper()
	const namespace = "come-and-gone"
	secret := func() string {
		return kubectl(t, "get", "secret", "--namespace", namespace, "weir-redis", "--ignore-not-found", "--output", "name")
	}
	kubectl(t, "create", "namespace", namespace)
	kubectl(t, "label", "namespace", namespace, "ratelimit.weir.dev/inject=enabled")
	eventually(t, patience, "it has credentials", func() bool { return secret() != "" })
	kubectl(t, "label", "namespace", namespace, "ratelimit.weir.dev/inject-")
	eventually(t, patience, "they are gone", func() bool { return secret() == "" })
}

// askWebhooks asks the manager what the API server would: about a policy for each kind of target, and about a pod.
func askWebhooks(t *testing.T) {
	t.Helper()
	var refs []string
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet"} {
		refs = append(refs, fmt.Sprintf(`{"group": "apps", "kind": %q, "name": "checkout"}`, kind))
	}
	refs = append(refs, `{"group": "", "kind": "Service", "name": "checkout"}`)
	policy := fmt.Sprintf(`{"apiVersion": "ratelimit.weir.dev/v1alpha1", "kind": "RateLimitPolicy", "metadata": {"name": "asked", "namespace": %q},
		"spec": {"targetRefs": [%s], "limits": [{"name": "all", "strategy": {"fixedWindow": {"requests": 1, "window": "1m"}}}]}}`, playground.Namespace, strings.Join(refs, ","))
	ask := func(path, group, kind, resource, object string) {
		review := fmt.Sprintf(`{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "1", "kind": {"group": %q, "version": "v1", "kind": %q},
			"resource": {"group": %q, "version": "v1", "resource": %q}, "namespace": %q, "operation": "CREATE", "userInfo": {}, "object": %s}}`,
			group, kind, group, resource, playground.Namespace, object)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, weir.Manager.Webhooks+path, bytes.NewBufferString(review))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := insecure.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var answer struct{ Response struct{ Allowed bool } }
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || !answer.Response.Allowed {
			t.Errorf("the manager's answer about a %s is %+v (%v)", kind, answer, err)
		}
	}
	ask("/validate-ratelimit-weir-dev-v1alpha1-ratelimitpolicy", "ratelimit.weir.dev", "RateLimitPolicy", "ratelimitpolicies", policy)
	// The pods of one owner that can't have a sidecar make one event, and then a series of it.
	for range 3 {
		ask("/inject-v1-pod", "", "Pod", "pods", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked", "labels": {"ratelimit.weir.dev/inject": "enabled"},
			"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "checkout", "uid": "1", "controller": true}]},
			"spec": {"hostNetwork": true, "containers": [{"name": "app", "image": "app"}]}}`)
	}
}

// grantedRights gives the rights of the roles that config binds to the manager.
func grantedRights(t *testing.T) map[right]bool {
	t.Helper()
	granted := map[right]bool{}
	for _, scope := range []struct{ bindings, roles string }{
		{"clusterrolebindings", "clusterroles"}, {"rolebindings", "roles"},
	} {
		var bindings rbacv1.ClusterRoleBindingList
		read(t, &bindings, "get", scope.bindings, "--namespace", "weir-system")
		for _, b := range bindings.Items {
			if !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Name == "weir-manager" && s.Namespace == "weir-system" }) {
				continue
			}
			var role rbacv1.ClusterRole
			read(t, &role, "get", scope.roles, "--namespace", "weir-system", b.RoleRef.Name)
			for _, rule := range role.Rules {
				for _, r := range rightsOf(rule) {
					granted[r] = true
				}
			}
		}
	}
	return granted
}

func rightsOf(rule rbacv1.PolicyRule) []right {
	var all []right
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				all = append(all, right{group, resource, verb})
			}
		}
	}
	return all
}

// read reads what kubectl gets.
func read(t *testing.T, into any, args ...string) {
	t.Helper()
	if err := json.Unmarshal([]byte(kubectl(t, append(args, "--output", "json")...)), into); err != nil {
		t.Fatal(err)
	}
}

// usedRights gives the rights that managers have used up to now, and what they were denied.
func usedRights(t *testing.T) (used map[right]int, denied []string) {
	t.Helper()
	log, err := os.Open(options.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	used = map[right]int{}
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	refusals := map[string]bool{}
	for lines.Scan() {
		var e auditEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != "system:serviceaccount:weir-system:weir-manager" || e.ObjectRef == nil {
			continue // The last line may not be whole yet.
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		if e.ResponseStatus != nil && e.ResponseStatus.Code == http.StatusForbidden {
			refusals[e.Verb+" "+e.RequestURI] = true
			continue
		}
		used[right{e.ObjectRef.APIGroup, resource, e.Verb}]++
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return used, slices.Sorted(maps.Keys(refusals))
}

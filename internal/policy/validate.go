// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
)

// Validate gives all that is wrong with the values of a policy. The CRD's schema says the most of it too;
// it is repeated here because files never pass the schema, and objects may have passed an older one. Of a
// field that [Unsupported] refuses, only its place in a union is looked at.
func Validate(p *v1alpha1.RateLimitPolicy) field.ErrorList {
	path := field.NewPath("spec")
	var e errs
	e.metadata(&p.ObjectMeta)
	e.targets(path, &p.Spec)
	e.word(path.Child("enforcement"), string(p.Spec.Enforcement), enforcements...)
	if f := p.Spec.OnStoreFailure; f != nil {
		e.word(path.Child("onStoreFailure", "mode"), string(f.Mode), "Open", "Closed", "Local")
	}
	if d := p.Spec.Distribution; d != nil {
		e.distribution(path.Child("distribution"), d)
	}
	e.limits(path.Child("limits"), p.Spec.Limits)
	if d := p.Spec.Distribution; d != nil && d.Mode == v1alpha1.DistributionLeased {
		e.leasable(path.Child("limits"), p.Spec.Limits)
	}
	if r := p.Spec.Response; r != nil {
		e.response(path.Child("response"), r)
	}
	return field.ErrorList(e)
}

var enforcements = []string{
	string(v1alpha1.EnforcementEnforce),
	string(v1alpha1.EnforcementShadow),
	string(v1alpha1.EnforcementDisabled),
}

func (e *errs) metadata(m *metav1.ObjectMeta) {
	path := field.NewPath("metadata")
	e.must(path.Child("name"), len(validation.IsDNS1123Subdomain(m.Name)) == 0, m.Name,
		"must be a DNS name in lower case, of at most 253 characters")
	e.must(path.Child("namespace"), m.Namespace == "" || isLabel(m.Namespace), m.Namespace, labelDetail)
}

const labelDetail = "must be a DNS label in lower case, of at most 63 characters"

func isLabel(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 }

func (e *errs) targets(path *field.Path, s *v1alpha1.RateLimitPolicySpec) {
	refs := path.Child("targetRefs")
	e.must(refs, (len(s.TargetRefs) > 0) != (s.Selector != nil), len(s.TargetRefs),
		"exactly one of targetRefs and selector must be set")
	e.atMost(refs, len(s.TargetRefs), 16, "entries")
	for i, ref := range s.TargetRefs {
		e.targetRef(refs.Index(i), ref)
		if slices.Contains(s.TargetRefs[:i], ref) {
			e.must(refs.Index(i), false, ref.Name, "must not repeat an earlier entry")
		}
	}
	if s.Selector != nil {
		e.selector(path.Child("selector"), s.Selector)
	}
}

// selector sorts what it finds, for the labels are in a map and a message must not change by itself.
func (e *errs) selector(path *field.Path, s *metav1.LabelSelector) {
	found := metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path)
	slices.SortFunc(found, func(a, b *field.Error) int { return cmp.Compare(a.Error(), b.Error()) })
	*e = append(*e, found...)
}

func (e *errs) targetRef(path *field.Path, ref v1alpha1.TargetRef) {
	switch ref.Kind {
	case "Service":
		e.must(path.Child("group"), ref.Group == "", ref.Group, `must be "" for a Service`)
		e.must(path.Child("sectionName"), ref.SectionName == "" || isLabel(ref.SectionName), ref.SectionName, labelDetail)
	case "Deployment", "StatefulSet", "DaemonSet":
		e.must(path.Child("group"), ref.Group == "apps", ref.Group, "must be apps for a "+ref.Kind)
		e.must(path.Child("sectionName"), ref.SectionName == "", ref.SectionName, "only a Service has sections: its ports")
	default:
		e.must(path.Child("kind"), false, ref.Kind, "must be one of Service, Deployment, StatefulSet, DaemonSet")
	}
	e.must(path.Child("name"), len(validation.IsDNS1123Subdomain(ref.Name)) == 0, ref.Name,
		"must be a DNS name in lower case, of at most 253 characters")
}

func (e *errs) distribution(path *field.Path, d *v1alpha1.Distribution) {
	e.word(path.Child("mode"), string(d.Mode), "Exact", "Leased", "PerReplica")
	if d.SyncInterval != nil {
		e.must(path.Child("syncInterval"), d.Mode == v1alpha1.DistributionLeased, *d.SyncInterval, "syncInterval goes with mode Leased only")
		e.duration(path.Child("syncInterval"), string(*d.SyncInterval), syncBounds)
	}
}

// leasable wants limits that replicas can take shares of in advance.
func (e *errs) leasable(path *field.Path, limits []v1alpha1.Limit) {
	for i := range limits {
		at, s := path.Index(i).Child("strategy"), limits[i].Strategy
		e.must(at.Child("leakyBucket"), s.LeakyBucket == nil, "{}",
			"goes with distribution Exact only: each request has a turn of its own")
		e.must(at.Child("concurrency"), s.Concurrency == nil, "{}",
			"goes with distribution Exact only: what a request has, it gives back at its end")
		e.must(at.Child("slidingWindow", "precision"), s.SlidingWindow == nil || s.SlidingWindow.Precision != precisionLog, precisionLog,
			"goes with distribution Exact only: each request counts from when it came")
	}
}

func (e *errs) limits(path *field.Path, limits []v1alpha1.Limit) {
	e.must(path, len(limits) > 0, len(limits), "must have at least 1 entry")
	e.atMost(path, len(limits), 32, "entries")
	seen := map[v1alpha1.Name]bool{}
	for i := range limits {
		l := &limits[i]
		e.must(path.Index(i).Child("name"), isLabel(string(l.Name)), l.Name, labelDetail)
		e.must(path.Index(i).Child("name"), !seen[l.Name], l.Name, "must not be the name of an earlier limit")
		seen[l.Name] = true
		e.limit(path.Index(i), l)
	}
}

func (e *errs) limit(path *field.Path, l *v1alpha1.Limit) {
	e.entries(path.Child("when"), len(l.When), l.When != nil, 16)
	for i := range l.When {
		e.requestMatch(path.Child("when").Index(i), &l.When[i])
	}
	e.entries(path.Child("key"), len(l.Key), l.Key != nil, 8)
	for i := range l.Key {
		e.keySource(path.Child("key").Index(i), &l.Key[i])
	}
	e.strategy(path.Child("strategy"), l.Strategy)
	e.word(path.Child("priority"), string(l.Priority), "Critical", "Default", "Sheddable")
	e.word(path.Child("enforcement"), string(l.Enforcement), enforcements...)
}

// The forms of strings, as the CRD's schema has them.
var (
	methodPattern     = regexp.MustCompile(`^[A-Z][A-Z-]*$`)
	hostPattern       = regexp.MustCompile(`^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
	headerNamePattern = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
)

func (e *errs) requestMatch(path *field.Path, m *v1alpha1.RequestMatch) {
	fields := len(m.Methods) + len(m.Paths) + len(m.Hosts) + len(m.Headers) + len(m.Expression)
	e.must(path, fields > 0, "{}", "must have at least one field: leave when out to count every request")
	e.entries(path.Child("methods"), len(m.Methods), m.Methods != nil, 16)
	for i, method := range m.Methods {
		e.pattern(path.Child("methods").Index(i), method, methodPattern, 32, "must be a method in upper case, like GET")
	}
	e.entries(path.Child("paths"), len(m.Paths), m.Paths != nil, 16)
	for i, p := range m.Paths {
		e.pathMatch(path.Child("paths").Index(i), p)
	}
	e.entries(path.Child("hosts"), len(m.Hosts), m.Hosts != nil, 16)
	for i, host := range m.Hosts {
		e.pattern(path.Child("hosts").Index(i), host, hostPattern, 253,
			"must be a host in lower case and without a port, like shop.example.com or *.example.com")
	}
	e.headerMatches(path.Child("headers"), m.Headers)
}

func (e *errs) pathMatch(path *field.Path, p v1alpha1.PathMatch) {
	e.word(path.Child("type"), p.Type, pathExact, pathPrefix, pathTemplate, regularExpression)
	e.atMost(path.Child("value"), len(p.Value), 1024, "bytes")
	switch p.Type {
	case "", pathExact, pathPrefix:
		e.must(path.Child("value"), strings.HasPrefix(p.Value, "/"), p.Value, "must start with /")
		e.must(path.Child("value"), !strings.ContainsAny(p.Value, "?#"), p.Value,
			"must not contain ? or #, for it is compared with the path alone: escape them")
	}
}

func (e *errs) headerMatches(path *field.Path, headers []v1alpha1.HeaderMatch) {
	e.entries(path, len(headers), headers != nil, 16)
	for i, h := range headers {
		at := path.Index(i)
		e.headerName(at.Child("name"), h.Name, "use hosts")
		again := slices.ContainsFunc(headers[:i], func(b v1alpha1.HeaderMatch) bool { return b.Name == h.Name })
		e.must(at.Child("name"), !again, h.Name, "must not be the header of an earlier entry")
		e.word(at.Child("type"), h.Type, headerExact, headerPrefix, regularExpression, headerPresent, headerAbsent)
		alone := h.Type == headerPresent || h.Type == headerAbsent
		e.must(at.Child("value"), alone == (h.Value == nil), h.Value,
			"value goes with Exact, Prefix and RegularExpression, and only with them")
		if h.Value != nil {
			e.atMost(at.Child("value"), len(*h.Value), 1024, "bytes")
		}
	}
}

// headerName refuses Host: servers take it out of the headers, and so no request would have it.
func (e *errs) headerName(path *field.Path, name v1alpha1.HeaderName, instead string) {
	e.pattern(path, string(name), headerNamePattern, 256, "must be the name of a header, like x-api-key")
	e.must(path, !strings.EqualFold(string(name), "Host"), name, "must not be Host: "+instead+" instead")
}

func (e *errs) keySource(path *field.Path, k *v1alpha1.KeySource) {
	e.union(path,
		member{"header", k.Header != nil},
		member{"cookie", k.Cookie != nil},
		member{"query", k.Query != nil},
		member{"clientIP", k.ClientIP != nil},
		member{"claim", k.Claim != nil},
		member{"pathParam", k.PathParam != nil},
		member{"method", k.Method != nil},
		member{"host", k.Host != nil},
		member{"expression", k.Expression != ""},
	)
	if k.Header != nil {
		e.headerName(path.Child("header", "name"), k.Header.Name, "use the key host")
	}
	if k.ClientIP != nil && k.ClientIP.IPv6PrefixLength != nil {
		e.between(path.Child("clientIP", "ipv6PrefixLength"), int64(*k.ClientIP.IPv6PrefixLength), 1, 128)
	}
	e.word(path.Child("onMissing"), string(k.OnMissing), "Skip", "Share", "Deny")
}

func (e *errs) strategy(path *field.Path, s v1alpha1.Strategy) {
	e.union(path,
		member{"tokenBucket", s.TokenBucket != nil},
		member{"slidingWindow", s.SlidingWindow != nil},
		member{"leakyBucket", s.LeakyBucket != nil},
		member{"fixedWindow", s.FixedWindow != nil},
		member{"adaptive", s.Adaptive != nil},
		member{"concurrency", s.Concurrency != nil},
	)
	if b := s.TokenBucket; b != nil {
		at := path.Child("tokenBucket")
		e.rate(at, b.Requests, b.Window)
		if b.Burst != nil {
			e.requests(at.Child("burst"), *b.Burst)
		}
	}
	if s.SlidingWindow != nil {
		e.slidingWindow(path.Child("slidingWindow"), s.SlidingWindow)
	}
	if s.LeakyBucket != nil {
		e.leakyBucket(path.Child("leakyBucket"), s.LeakyBucket)
	}
	if s.FixedWindow != nil {
		e.fixedWindow(path.Child("fixedWindow"), s.FixedWindow)
	}
	if c := s.Concurrency; c != nil {
		e.between(path.Child("concurrency", "maxInFlight"), int64(c.MaxInFlight), 1, maxEntries)
	}
}

// maxEntries is how many requests a counter can have that keeps an entry for each.
const maxEntries = 10_000

func (e *errs) slidingWindow(path *field.Path, w *v1alpha1.SlidingWindow) {
	e.rate(path, w.Requests, w.Window)
	e.word(path.Child("precision"), w.Precision, precisionRing, precisionLog, precisionApproximate)
	e.must(path.Child("requests"), w.Precision != precisionLog || w.Requests <= maxEntries, w.Requests,
		"must be at most 10000 with precision Log, which keeps each request")
}

func (e *errs) leakyBucket(path *field.Path, b *v1alpha1.LeakyBucket) {
	e.rate(path, b.Requests, b.Window)
	e.word(path.Child("mode"), b.Mode, modeQueue, modeMeter)
	e.must(path.Child("mode"), b.Mode != modeMeter || b.MaxDelay == nil && b.MaxQueue == nil, b.Mode,
		"maxDelay and maxQueue go with mode Queue only")
	if b.MaxDelay != nil {
		e.duration(path.Child("maxDelay"), string(*b.MaxDelay), delayBounds)
	}
	if b.MaxQueue != nil {
		e.between(path.Child("maxQueue"), int64(*b.MaxQueue), 1, 100_000)
	}
}

func (e *errs) fixedWindow(path *field.Path, w *v1alpha1.FixedWindow) {
	e.requests(path.Child("requests"), w.Requests)
	e.union(path, member{"window", w.Window != nil}, member{"calendar", w.Calendar != nil})
	if w.Window != nil {
		e.window(path.Child("window"), *w.Window)
	}
	if w.Calendar != nil {
		e.calendar(path.Child("calendar"), w.Calendar)
	}
}

func (e *errs) calendar(path *field.Path, c *v1alpha1.Calendar) {
	units := []string{string(limiter.Day), string(limiter.Week), string(limiter.Month), string(limiter.Year)}
	e.must(path.Child("unit"), slices.Contains(units, c.Unit), c.Unit, "must be one of "+strings.Join(units, ", "))
	_, err := calendar(c).Location()
	e.must(path.Child("timeZone"), err == nil, c.TimeZone, "must be a name of the IANA database, like Europe/Berlin")
}

func (e *errs) rate(path *field.Path, n v1alpha1.Requests, w v1alpha1.Window) {
	e.requests(path.Child("requests"), n)
	e.window(path.Child("window"), w)
}

func (e *errs) requests(path *field.Path, n v1alpha1.Requests) {
	e.between(path, int64(n), 1, 1_000_000_000)
}

func (e *errs) window(path *field.Path, w v1alpha1.Window) {
	e.duration(path, string(w), windowBounds)
}

func (e *errs) duration(path *field.Path, d string, b bounds) {
	if _, err := b.parse(d); err != nil {
		e.must(path, false, d, err.Error())
	}
}

func (e *errs) response(path *field.Path, r *v1alpha1.Response) {
	if r.StatusCode != nil {
		e.between(path.Child("statusCode"), int64(*r.StatusCode), 400, 599)
	}
	e.atMost(path.Child("headers"), len(r.Headers), 2, "entries")
	for i, h := range r.Headers {
		known := h == v1alpha1.HeadersDraft11 || h == v1alpha1.HeadersLegacy
		ok := known && !slices.Contains(r.Headers[:i], h)
		e.must(path.Child("headers").Index(i), ok, h, "must be Draft11 or Legacy, and each only once")
	}
	if r.Body != nil {
		e.word(path.Child("body", "type"), string(r.Body.Type), "Problem", "None")
	}
}

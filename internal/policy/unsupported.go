// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// The words of the API that have no constants of their own.
const (
	pathExact         = "Exact"
	pathPrefix        = "Prefix"
	pathTemplate      = "Template"
	headerExact       = "Exact"
	headerPrefix      = "Prefix"
	headerPresent     = "Present"
	headerAbsent      = "Absent"
	regularExpression = "RegularExpression"

	precisionRing        = "Ring"
	precisionLog         = "Log"
	precisionApproximate = "Approximate"
	modeQueue            = "Queue"
	modeMeter            = "Meter"
)

// Unsupported gives every use of what the API has and this release doesn't. It looks at nothing else: a
// policy may pass here and be invalid.
func Unsupported(p *v1alpha1.RateLimitPolicy) field.ErrorList {
	var u uses
	path := field.NewPath("spec")
	u.field(path.Child("authentication"), p.Spec.Authentication != nil)
	for i := range p.Spec.Limits {
		u.limit(path.Child("limits").Index(i), &p.Spec.Limits[i])
	}
	if r := p.Spec.Response; r != nil {
		for i, h := range r.Headers {
			u.value(path.Child("response", "headers").Index(i), h == v1alpha1.HeadersLegacy, h)
		}
	}
	return field.ErrorList(u)
}

// uses collects the uses of what is not supported.
type uses field.ErrorList

// field adds a field, if it is set.
func (u *uses) field(path *field.Path, set bool) {
	all := path.String()
	u.value(path, set, all[strings.LastIndex(all, ".")+1:])
}

// value adds a field whose value is one that is not supported.
func (u *uses) value(path *field.Path, unsupported bool, value any) {
	if unsupported {
		*u = append(*u, field.Forbidden(path, fmt.Sprintf("%v is not supported by this release", value)))
	}
}

func (u *uses) limit(path *field.Path, l *v1alpha1.Limit) {
	for i := range l.When {
		u.requestMatch(path.Child("when").Index(i), &l.When[i])
	}
	for i := range l.Key {
		u.keySource(path.Child("key").Index(i), &l.Key[i])
	}
	u.strategy(path.Child("strategy"), l.Strategy)
	u.field(path.Child("cost"), l.Cost != nil)
	other := l.Priority == v1alpha1.PriorityCritical || l.Priority == v1alpha1.PrioritySheddable
	u.value(path.Child("priority"), other, l.Priority)
	u.field(path.Child("overrides"), len(l.Overrides) > 0)
}

func (u *uses) requestMatch(path *field.Path, m *v1alpha1.RequestMatch) {
	for i, p := range m.Paths {
		other := p.Type == pathTemplate || p.Type == regularExpression
		u.value(path.Child("paths").Index(i).Child("type"), other, p.Type)
	}
	for i, h := range m.Headers {
		u.value(path.Child("headers").Index(i).Child("type"), h.Type == regularExpression, h.Type)
	}
	u.field(path.Child("expression"), m.Expression != "")
}

func (u *uses) keySource(path *field.Path, k *v1alpha1.KeySource) {
	u.field(path.Child("cookie"), k.Cookie != nil)
	u.field(path.Child("query"), k.Query != nil)
	u.field(path.Child("claim"), k.Claim != nil)
	u.field(path.Child("pathParam"), k.PathParam != nil)
	u.field(path.Child("expression"), k.Expression != "")
}

func (u *uses) strategy(path *field.Path, s v1alpha1.Strategy) {
	u.field(path.Child("adaptive"), s.Adaptive != nil)
}

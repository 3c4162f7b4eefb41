// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// compiled are the fields that make a difference to what is compiled or looked up, each with two values
// that do. In the paths, 0 is the first entry of a list.
var compiled = map[string][2]any{
	"targetRefs.0.group":                              {"", "apps"},
	"targetRefs.0.kind":                               {"Service", "Deployment"},
	"targetRefs.0.name":                               {"a", "b"},
	"targetRefs.0.sectionName":                        {"http", "grpc"},
	"selector.matchLabels":                            {map[string]any{"a": "1"}, map[string]any{"a": "2"}},
	"selector.matchExpressions.0.key":                 {"a", "b"},
	"selector.matchExpressions.0.operator":            {"In", "NotIn"},
	"selector.matchExpressions.0.values":              {[]any{"a"}, []any{"b"}},
	"enforcement":                                     {"Enforce", "Shadow"},
	"onStoreFailure.mode":                             {"Closed", "Local"},
	"distribution.mode":                               {"Exact", "Leased"},
	"distribution.syncInterval":                       {"100ms", "200ms"},
	"limits.0.name":                                   {"a", "b"},
	"limits.0.enforcement":                            {"Enforce", "Shadow"},
	"limits.0.when.0.methods":                         {[]any{"GET"}, []any{"PUT"}},
	"limits.0.when.0.paths.0.type":                    {"Exact", "Prefix"},
	"limits.0.when.0.paths.0.value":                   {"/a", "/b"},
	"limits.0.when.0.hosts":                           {[]any{"a"}, []any{"b"}},
	"limits.0.when.0.headers.0.name":                  {"a", "b"},
	"limits.0.when.0.headers.0.type":                  {"Exact", "Prefix"},
	"limits.0.when.0.headers.0.value":                 {"a", "b"},
	"limits.0.key.0.header.name":                      {"a", "b"},
	"limits.0.key.0.clientIP.ipv6PrefixLength":        {56, 64},
	"limits.0.key.0.method":                           {nil, map[string]any{}},
	"limits.0.key.0.host":                             {nil, map[string]any{}},
	"limits.0.key.0.onMissing":                        {"Skip", "Deny"},
	"limits.0.strategy.tokenBucket.requests":          {1, 2},
	"limits.0.strategy.tokenBucket.window":            {"1s", "2s"},
	"limits.0.strategy.tokenBucket.burst":             {1, 2},
	"limits.0.strategy.slidingWindow.requests":        {1, 2},
	"limits.0.strategy.slidingWindow.window":          {"1s", "2s"},
	"limits.0.strategy.slidingWindow.precision":       {"Ring", "Approximate"},
	"limits.0.strategy.leakyBucket.requests":          {1, 2},
	"limits.0.strategy.leakyBucket.window":            {"1s", "2s"},
	"limits.0.strategy.leakyBucket.mode":              {"Queue", "Meter"},
	"limits.0.strategy.leakyBucket.maxDelay":          {"1s", "2s"},
	"limits.0.strategy.leakyBucket.maxQueue":          {1, 2},
	"limits.0.strategy.fixedWindow.requests":          {1, 2},
	"limits.0.strategy.fixedWindow.window":            {"1s", "2s"},
	"limits.0.strategy.fixedWindow.calendar.unit":     {"Day", "Week"},
	"limits.0.strategy.fixedWindow.calendar.timeZone": {"UTC", "Europe/Berlin"},
	"limits.0.strategy.concurrency.maxInFlight":       {1, 2},
	"response.statusCode":                             {429, 503},
	"response.headers":                                {[]any{}, []any{"Draft11"}},
	"response.body.type":                              {"Problem", "None"},
}

// otherwise are the values that are refused of fields whose default is supported.
var otherwise = map[string]any{
	"limits.0.priority": "Critical",
}

func TestNoFieldIsIgnored(t *testing.T) {
	all := fields(reflect.TypeFor[v1alpha1.RateLimitPolicySpec]())
	for path, example := range all {
		values, ok := compiled[path]
		if !ok {
			t.Run(path+" is refused", func(t *testing.T) { mustRefuse(t, path, cmp.Or(otherwise[path], example)) })
			continue
		}
		t.Run(path+" is compiled", func(t *testing.T) {
			if gocmp.Equal(compileWith(t, path, values[0]), compileWith(t, path, values[1])) {
				t.Errorf("%v and %v compile to the same", values[0], values[1])
			}
		})
	}
	for path := range compiled {
		if _, ok := all[path]; !ok {
			t.Errorf("%s is no field of the API", path)
		}
	}
}

// A new algorithm takes a word of the API as well as a place in the table of strategies.
func TestTheStrategiesOfTheAPIAreThoseThatCount(t *testing.T) {
	members := crd(t).Properties["spec"].Properties["limits"].Items.Properties["strategy"].Properties
	var got []limiter.Algorithm
	for member, schema := range members {
		for _, variant := range variants(schema) {
			p := with(t, "limits.0.strategy", map[string]any{member: variant})
			if Unsupported(p) == nil {
				got = append(got, parameters(p.Spec.Limits[0].Strategy).Algorithm)
			}
		}
	}
	slices.Sort(got)
	if diff := gocmp.Diff(strategy.Names(), got); diff != "" {
		t.Errorf("algorithms (-of the table +of the API):\n%s", diff)
	}
}

func TestWhatCannotBeLeasedIsRefused(t *testing.T) {
	members := crd(t).Properties["spec"].Properties["limits"].Items.Properties["strategy"].Properties
	for member, schema := range members {
		for _, variant := range variants(schema) {
			p := with(t, "limits.0.strategy", map[string]any{member: variant})
			if Unsupported(p) != nil {
				continue
			}
			algorithm := parameters(p.Spec.Limits[0].Strategy).Algorithm
			t.Run(string(algorithm)+" is refused where it can't be leased, and only there", func(t *testing.T) {
				exact := len(Validate(p))
				p.Spec.Distribution = &v1alpha1.Distribution{Mode: v1alpha1.DistributionLeased}
				if refused := len(Validate(p)) > exact; refused == strategy.Leasable(algorithm) {
					t.Errorf("refused: %t", refused)
				}
			})
		}
	}
}

// variants gives a strategy with each word of its enumerations, and with each object in the place of its window.
func variants(s schema) []map[string]any {
	plain := map[string]any{}
	if _, ok := s.Properties["window"]; ok {
		plain["window"] = "1s"
	}
	var words, objects []map[string]any
	for name, property := range s.Properties {
		for _, word := range property.Enum {
			variant := maps.Clone(plain)
			variant[name] = word
			words = append(words, variant)
		}
		if len(property.Properties) > 0 {
			objects = append(objects, map[string]any{name: map[string]any{}})
		}
	}
	if words == nil {
		words = append(words, plain)
	}
	return append(words, objects...)
}

// mustRefuse wants a value, or something that it is a part of, to be named as unsupported.
func mustRefuse(t *testing.T, path string, value any) {
	t.Helper()
	refused := Unsupported(with(t, path, value))
	if len(refused) != 1 {
		t.Fatalf("got %v, want one field", refused)
	}
	got := strings.NewReplacer("spec.", "", "[0]", ".0").Replace(refused[0].Field)
	if !strings.HasPrefix(path+".", got+".") {
		t.Errorf("got %s", refused[0].Field)
	}
}

// compileWith compiles a policy with a value in one place, valid or not, and gives what is looked up for it.
func compileWith(t *testing.T, path string, value any) any {
	t.Helper()
	p := with(t, path, value)
	return []any{compile(p, unresolved(p)), Refs(p)}
}

// with gives a policy that has a value in one place.
func with(t *testing.T, path string, value any) *v1alpha1.RateLimitPolicy {
	t.Helper()
	var p v1alpha1.RateLimitPolicy
	var spec any
	unmarshal(t, []byte("limits: [{name: a, strategy: {fixedWindow: {requests: 1, window: 1s}}}]"), &spec)
	b, err := json.Marshal(set(spec, strings.Split(path, "."), value))
	if err != nil {
		t.Fatal(err)
	}
	unmarshal(t, b, &p.Spec)
	return &p
}

// set puts a value into a tree of maps and lists, which it extends as needed.
func set(tree any, path []string, value any) any {
	if len(path) == 0 {
		return value
	}
	if path[0] == "0" {
		list, _ := tree.([]any)
		if len(list) == 0 {
			list = []any{nil}
		}
		list[0] = set(list[0], path[1:], value)
		return list
	}
	object, _ := tree.(map[string]any)
	if object == nil {
		object = map[string]any{}
	}
	object[path[0]] = set(object[path[0]], path[1:], value)
	return object
}

// fields gives the fields of a type that have no fields of their own, with a value for each.
func fields(t reflect.Type) map[string]any {
	found := map[string]any{}
	collect(found, "", t)
	return found
}

func collect(found map[string]any, path string, t reflect.Type) {
	switch {
	case t.Kind() == reflect.Pointer:
		collect(found, path, t.Elem())
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		collect(found, path+".0", t.Elem())
	case t.Kind() == reflect.Struct && t.NumField() > 0:
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			collect(found, path+"."+name, f.Type)
		}
	default:
		found[strings.TrimPrefix(path, ".")] = example(t)
	}
}

// example gives a value of a type as JSON has it.
func example(t reflect.Type) any {
	switch t.Kind() {
	case reflect.String:
		return "x"
	case reflect.Int32, reflect.Int64:
		return 1
	case reflect.Bool:
		return true
	case reflect.Slice:
		return []any{example(t.Elem())}
	default:
		return map[string]any{}
	}
}

func TestDefaultsAreThoseOfTheSchema(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			want, got := outcome(parse(t, in)), outcome(parse(t, defaulted(t, in)))
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("outcome (-without defaults +with those of the schema):\n%s", diff)
			}
		})
	}
	t.Run("the defaults of this test reach every depth", func(t *testing.T) {
		p, _ := parse(t, defaulted(t, []byte(`spec: {limits: [{key: [{clientIP: {}}]}], response: {}}`)))
		bits, status := int32(64), int32(429)
		want := v1alpha1.RateLimitPolicySpec{
			Enforcement:    "Enforce",
			OnStoreFailure: &v1alpha1.OnStoreFailure{Mode: "Open"},
			Distribution:   &v1alpha1.Distribution{Mode: "Exact"},
			Limits: []v1alpha1.Limit{{
				Priority: "Default",
				Key: []v1alpha1.KeySource{{
					ClientIP:  &v1alpha1.ClientIPKey{IPv6PrefixLength: &bits},
					OnMissing: "Share",
				}},
			}},
			Response: &v1alpha1.Response{
				StatusCode: &status,
				Headers:    []v1alpha1.HeaderFormat{"Draft11"},
				Body:       &v1alpha1.ResponseBody{Type: "Problem"},
			},
		}
		if diff := gocmp.Diff(want, p.Spec); diff != "" {
			t.Errorf("spec (-want +got):\n%s", diff)
		}
	})
}

// schema is the part of an OpenAPI schema that says what can be filled in, and what is.
type schema struct {
	Default    any               `json:"default"`
	Enum       []any             `json:"enum"`
	Properties map[string]schema `json:"properties"`
	Items      *schema           `json:"items"`
}

// defaulted fills in the spec of a policy what the API server would.
func defaulted(t *testing.T, in []byte) []byte {
	t.Helper()
	policy, workloads, found := strings.Cut(string(in), "\n---\n")
	var p map[string]any
	unmarshal(t, []byte(policy), &p)
	p["spec"] = fill(p["spec"], crd(t).Properties["spec"])
	b, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if found {
		workloads = "\n---\n" + workloads
	}
	return append(b, workloads...)
}

// fill fills in the defaults of a value's fields. Null counts as absent, as it does for the API server.
func fill(value any, s schema) any {
	switch v := value.(type) {
	case map[string]any:
		for name, property := range s.Properties {
			if v[name] == nil {
				v[name] = property.Default
			}
			if v[name] == nil {
				delete(v, name)
				continue
			}
			v[name] = fill(v[name], property)
		}
	case []any:
		for i := range v {
			v[i] = fill(v[i], *s.Items)
		}
	}
	return value
}

// crd gives the schema of a RateLimitPolicy.
func crd(t *testing.T) schema {
	t.Helper()
	var c struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(read(t, "../../config/crd/bases/ratelimit.weir.dev_ratelimitpolicies.yaml"), &c); err != nil {
		t.Fatal(err)
	}
	return c.Spec.Versions[0].Schema.OpenAPIV3Schema
}

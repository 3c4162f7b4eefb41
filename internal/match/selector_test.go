// SPDX-License-Identifier: Apache-2.0

package match

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
)

func TestSelector(t *testing.T) {
	t.Run("it selects what Kubernetes selects", rapid.MakeCheck(func(t *rapid.T) {
		s := drawSelector(t)
		pod := rapid.MapOf(word, word).Draw(t, "labels")

		k, err := kubernetes(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.Selects(pod), k.Matches(labels.Set(pod)); got != want {
			t.Errorf("%+v selects %v: got %v, want %v", s, pod, got, want)
		}
	}))
	t.Run("the zero value selects everything", func(t *testing.T) {
		if !(Selector{}).Selects(nil) {
			t.Error("a pod without labels is not selected")
		}
	})
	t.Run("an unknown operator selects nothing", func(t *testing.T) {
		s := Selector{MatchExpressions: []Requirement{{Key: "a", Operator: "Gt", Values: []string{"1"}}}}
		if s.Selects(map[string]string{"a": "2"}) {
			t.Error("a pod is selected")
		}
	})
}

// word has few values, so that labels often meet.
var word = rapid.SampledFrom([]string{"a", "b", "c", "d"})

func drawSelector(t *rapid.T) Selector {
	requirement := rapid.Custom(func(t *rapid.T) Requirement {
		r := Requirement{
			Key:      word.Draw(t, "key"),
			Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator"),
		}
		if r.Operator == "In" || r.Operator == "NotIn" {
			r.Values = rapid.SliceOfN(word, 1, 3).Draw(t, "values")
		}
		return r
	})
	return Selector{
		MatchLabels:      rapid.MapOfN(word, word, 0, 2).Draw(t, "matchLabels"),
		MatchExpressions: rapid.SliceOfN(requirement, 0, 3).Draw(t, "matchExpressions"),
	}
}

// kubernetes gives the selector as Kubernetes understands it.
func kubernetes(s Selector) (labels.Selector, error) {
	l := metav1.LabelSelector{MatchLabels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		l.MatchExpressions = append(l.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values,
		})
	}
	return metav1.LabelSelectorAsSelector(&l)
}

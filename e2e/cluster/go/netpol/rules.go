package main

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// cluster is what the rules follow from. pods are those that have an address of their own, in an order.
type cluster struct {
	pods       []*v1.Pod
	namespaces map[string]labels.Set
	policies   []*networking.NetworkPolicy
}

// ruleset is the whole nftables table, as one transaction that replaces the one before. A pod that no policy selects is
// not in it. The rules decide about a connection's first packet, after kube-proxy has put a pod's address in place of a
// Service's. What the node itself sends, such as the kubelet's probes, is not forwarded and so always arrives.
//
// Refused is said by ICMP "administratively prohibited", so that a client knows at once: its connect() fails with
// EHOSTUNREACH, where a port on which nobody listens gives ECONNREFUSED.
func (c cluster) ruleset() string {
	var entries, chains []string
	for _, pod := range c.pods {
		if rules, selected := c.rules(pod); selected {
			ip := pod.Status.PodIP
			entries = append(entries, fmt.Sprintf("%s : goto pod-%s", ip, ip))
			rules = append(rules, "reject with icmp type admin-prohibited")
			chains = append(chains, fmt.Sprintf("\tchain pod-%s {\n\t\t%s\n\t}\n", ip, strings.Join(rules, "\n\t\t")))
		}
	}
	dispatch := ""
	if len(entries) > 0 {
		dispatch = fmt.Sprintf("\t\tip daddr vmap { %s }\n", strings.Join(entries, ", "))
	}
	return "table ip netpol\ndelete table ip netpol\ntable ip netpol {\n" + strings.Join(chains, "") +
		"\tchain forward {\n\t\ttype filter hook forward priority filter\n\t\tct state established,related accept\n" +
		dispatch + "\t}\n}\n"
}

// rules is one nftables rule per way into the pod, and whether any policy selects it at all.
func (c cluster) rules(pod *v1.Pod) (rules []string, selected bool) {
	for _, policy := range c.policies {
		ingress := slices.Contains(policy.Spec.PolicyTypes, networking.PolicyTypeIngress)
		if !ingress || policy.Namespace != pod.Namespace || !matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		selected = true
		for _, rule := range policy.Spec.Ingress {
			for _, source := range c.sources(policy.Namespace, rule.From) {
				for _, port := range ports(pod, rule.Ports) {
					rules = append(rules, source+port+"accept")
				}
			}
		}
	}
	return rules, selected
}

// sources is one match on the sender per peer; no peers at all are everybody.
func (c cluster) sources(namespace string, peers []networking.NetworkPolicyPeer) []string {
	if len(peers) == 0 {
		return []string{""}
	}
	var found []string
	for _, peer := range peers {
		if block := peer.IPBlock; block != nil {
			match := fmt.Sprintf("ip saddr %s ", block.CIDR)
			if len(block.Except) > 0 {
				match += fmt.Sprintf("ip saddr != { %s } ", strings.Join(block.Except, ", "))
			}
			found = append(found, match)
			continue
		}
		var addresses []string
		for _, pod := range c.pods {
			if c.is(pod, namespace, peer) {
				addresses = append(addresses, pod.Status.PodIP)
			}
		}
		if len(addresses) > 0 {
			found = append(found, fmt.Sprintf("ip saddr { %s } ", strings.Join(addresses, ", ")))
		}
	}
	return found
}

// is says whether the pod is this peer: both selectors have to match; without a namespaceSelector, the policy's own
// namespace is meant.
func (c cluster) is(pod *v1.Pod, namespace string, peer networking.NetworkPolicyPeer) bool {
	if peer.NamespaceSelector == nil {
		if pod.Namespace != namespace {
			return false
		}
	} else if !matches(peer.NamespaceSelector, c.namespaces[pod.Namespace]) {
		return false
	}
	return peer.PodSelector == nil || matches(peer.PodSelector, pod.Labels)
}

// matches: the API server stores no selector that does not compile.
func matches(selector *metav1.LabelSelector, set labels.Set) bool {
	compiled, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && compiled.Matches(set)
}

// ports is one match on the destination per port; no ports at all are every port. A name that no container of the pod
// has is no port.
func ports(pod *v1.Pod, wanted []networking.NetworkPolicyPort) []string {
	if len(wanted) == 0 {
		return []string{""}
	}
	var found []string
	for _, port := range wanted {
		protocol := strings.ToLower(string(*port.Protocol)) // the API server fills it in
		switch {
		case port.Port == nil:
			found = append(found, fmt.Sprintf("meta l4proto %s ", protocol))
		case port.Port.Type == intstr.String:
			for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				for _, own := range container.Ports {
					if own.Name == port.Port.StrVal && own.Protocol == *port.Protocol {
						found = append(found, fmt.Sprintf("%s dport %d ", protocol, own.ContainerPort))
					}
				}
			}
		case port.EndPort != nil:
			found = append(found, fmt.Sprintf("%s dport %d-%d ", protocol, port.Port.IntVal, *port.EndPort))
		default:
			found = append(found, fmt.Sprintf("%s dport %d ", protocol, port.Port.IntVal))
		}
	}
	return found
}
